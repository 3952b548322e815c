"""The merged vocabulary: text pieces, two audio codebooks, markers and padding, as data.

Layout of the released Step-Audio checkpoints (stepfun-ai/Step-Audio: `tokenizer.py`)::

    0 ........ 65535   text pieces (SentencePiece), with pad 0, bos 1, <|EOT|> 3, <|BOT|> 4
    65536 .... 66559   linguistic codes 0..1023     (16.67 Hz)
    66560 .... 70655   semantic codes 0..4095       (25 Hz)
    70656 .... 74751   markers; their use in the released checkpoints is not published

Every tool reads ids from one `Vocabulary`, so that they cannot disagree.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

LINGUISTIC_PER_GROUP = 2
SEMANTIC_PER_GROUP = 3
GROUP_SIZE = LINGUISTIC_PER_GROUP + SEMANTIC_PER_GROUP  # five tokens, 120 ms
GROUP_DURATION_S = 0.12

TEXT, LINGUISTIC, SEMANTIC = 0, 1, 2
MODALITY_NAMES = ("text", "linguistic", "semantic")

Layout = Literal["interleaved", "text_first", "audio_only"]
_WITHOUT_END = 1 << 62  # more text tokens than any answer has; fits the index builder's 64-bit integers


@dataclass(frozen=True)
class Vocabulary:
    """Id ranges and markers of the merged vocabulary; the defaults are the released layout.

    Attributes:
        text_size: text ids are `0 … text_size − 1`.
        linguistic_size: entries of the linguistic codebook; its ids follow the text ids.
        semantic_size: entries of the semantic codebook; its ids follow the linguistic ids.
        size: all ids that may occur, markers included. Rows beyond it are padding and never enter a softmax.
        pad: fills the end of a sequence; carries no loss.
        bos: starts a document.
        eot: `<|EOT|>`, ends a turn.
        bot: `<|BOT|>`, starts a turn.
        audio_start: `<audio_start>`, stands before the first group of a spoken segment.
        audio_end: `<audio_end>`, stands after the last group of a spoken segment.
    """

    text_size: int = 65536
    linguistic_size: int = 1024
    semantic_size: int = 4096
    size: int = 74752
    pad: int = 0
    bos: int = 1
    eot: int = 3
    bot: int = 4
    audio_start: int = 70656
    audio_end: int = 70657

    def __post_init__(self) -> None:
        for name in ("pad", "bos", "eot", "bot", "audio_start", "audio_end"):
            token_id = getattr(self, name)
            inside_codebooks = self.linguistic_start <= token_id < self.audio_stop
            if not 0 <= token_id < self.size or inside_codebooks:
                raise ValueError(
                    f"vocabulary: {name} = {token_id} must lie in 0 … {self.size - 1} and outside the codebooks "
                    f"({self.linguistic_start} … {self.audio_stop - 1})"
                )
        if self.size < self.audio_stop:
            raise ValueError(f"vocabulary: size = {self.size} is smaller than the codebooks' end {self.audio_stop}")

    @classmethod
    def for_text(cls, text_size: int, **markers: int) -> Vocabulary:
        """Layout for a text model with `text_size` pieces: the codebooks follow, then the two audio markers."""
        stop = text_size + cls.linguistic_size + cls.semantic_size
        return cls(text_size=text_size, size=stop + 2, audio_start=stop, audio_end=stop + 1, **markers)

    @property
    def linguistic_start(self) -> int:
        """Token id of linguistic code 0."""
        return self.text_size

    @property
    def semantic_start(self) -> int:
        """Token id of semantic code 0."""
        return self.text_size + self.linguistic_size

    @property
    def audio_stop(self) -> int:
        """First token id after both codebooks."""
        return self.semantic_start + self.semantic_size

    @property
    def audio_range(self) -> dict[str, int]:
        """Where the two codebooks lie, as `ops.interleave_codes` and `ops.deinterleave_codes` take it."""
        names = ("linguistic_start", "semantic_start", "audio_stop")
        return {name: getattr(self, name) for name in names}

    def padded_size(self, multiple: int) -> int:
        """Rows of the embedding table: `size` rounded up to `multiple`."""
        return -(-self.size // multiple) * multiple

    def is_audio(self, token_ids: Any) -> Any:
        """True where an id is an audio code; works on int, numpy and torch."""
        return (token_ids >= self.linguistic_start) & (token_ids < self.audio_stop)

    def modality(self, token_ids: Any) -> Any:
        """0 text (markers included), 1 linguistic, 2 semantic; same shape as `token_ids` (numpy or torch)."""
        audio = self.is_audio(token_ids)
        return audio * 1 + (audio & (token_ids >= self.semantic_start)) * 1

    def save(self, path: str | Path) -> None:
        """Write the layout as YAML."""
        Path(path).write_text(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False))

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a layout written by `save`.

        Raises:
            ValueError: the file is missing or has unknown keys; the message names it.
        """
        try:
            return cls(**yaml.safe_load(Path(path).read_text()))
        except FileNotFoundError:
            raise ValueError(f"{path}: no such vocabulary file; the text tokenizer stage writes it") from None
        except TypeError as error:
            raise ValueError(f"{path}: not a vocabulary file: {error}") from None


@dataclass(frozen=True)
class AnswerFormat:
    """How the words and the speech of one spoken segment are laid out.

    - `interleaved`: `text_chunk` text tokens, then `audio_chunk` audio tokens, and so on. 10:15 is the published ratio
      (Step-Audio-AQAA, ablation "text:audio ratio"; 15 audio tokens are 360 ms); 6:50 and 3:5 are its rivals there.
      Tail rule: when fewer than `text_chunk` text tokens are left, the rest of the audio follows them at once; when
      the audio ends first, the rest of the text follows after `<audio_end>`.
    - `text_first`: all text, then all audio.
    - `audio_only`: the audio alone; its words are left out.

    Attributes:
        text_chunk: text tokens in a row; `interleaved` only.
        audio_chunk: audio tokens in a row, whole groups; `interleaved` only.
        layout: one of the three.
    """

    text_chunk: int = 10
    audio_chunk: int = 15
    layout: Layout = "interleaved"

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise ValueError(f"layout = {self.layout!r}: expected interleaved, text_first or audio_only")
        if self.text_chunk < 1:
            raise ValueError(f"text_chunk = {self.text_chunk}: must be at least 1")
        if self.audio_chunk < GROUP_SIZE or self.audio_chunk % GROUP_SIZE:
            raise ValueError(f"audio_chunk = {self.audio_chunk}: must be a multiple of {GROUP_SIZE} (whole groups)")
        if self.layout != "interleaved" and (self.text_chunk, self.audio_chunk) != (10, 15):
            raise ValueError(f"layout = {self.layout!r} has no chunks; take out text_chunk and audio_chunk")

    def __str__(self) -> str:
        return f"{self.text_chunk}:{self.audio_chunk}" if self.layout == "interleaved" else self.layout

    @property
    def text_limit(self) -> int:
        """Text tokens that may stand in a row before speech must follow: a chunk, without end for `text_first`."""
        return _WITHOUT_END if self.layout == "text_first" else self.text_chunk


class GroupGrammar:
    """What may follow in a spoken answer of one format: a small state machine that keeps audio in whole groups.

    One stray audio token shifts every later group and a vocoder then speaks noise, so generation asks
    `allowed()` before each token and tells `advance()` what was taken.

    Kinds of token: `"text"`, `"linguistic"`, `"semantic"`, `"audio_start"`, `"audio_end"`, `"eot"`.
    """

    def __init__(self, vocabulary: Vocabulary, answer_format: AnswerFormat | None = None) -> None:
        self.vocabulary = vocabulary
        self.format = answer_format or AnswerFormat()
        self.text_in_chunk = 0
        self.audio_in_chunk = 0
        self.in_segment = False  # between <audio_start> and <audio_end>
        self.text_done = False  # no text follows in this segment
        self.segment_closed = False  # at least one segment is complete
        self.finished = False

    def kind(self, token_id: int) -> str:
        """Kind of a token id.

        Raises:
            ValueError: the id is outside the vocabulary or never part of an answer.
        """
        v = self.vocabulary
        special = {v.eot: "eot", v.audio_start: "audio_start", v.audio_end: "audio_end"}
        if token_id in special:
            return special[token_id]
        if v.is_audio(token_id):
            return "semantic" if token_id >= v.semantic_start else "linguistic"
        if token_id in (v.pad, v.bos, v.bot) or not 0 <= token_id < v.text_size:
            raise ValueError(f"token id {token_id} is never part of an answer")
        return "text"

    def allowed(self) -> frozenset[str]:
        """Kinds that may come next."""
        if self.finished:
            return frozenset()
        if not self.in_segment:
            return self._allowed_outside()
        position = self.audio_in_chunk % GROUP_SIZE
        if position in range(1, LINGUISTIC_PER_GROUP):
            return frozenset({"linguistic"})
        if position >= LINGUISTIC_PER_GROUP:
            return frozenset({"semantic"})
        return self._allowed_between_groups()

    def _allowed_outside(self) -> frozenset[str]:
        if self.format.layout == "audio_only":
            return frozenset({"audio_start", "eot"} if self.segment_closed else {"audio_start"})
        if self.segment_closed:  # the rest of the text, a further segment with or without text, or the end
            return frozenset({"text", "audio_start", "eot"})
        if self.text_in_chunk == 0:
            return frozenset({"text"})
        return frozenset({"audio_start"} if self.text_in_chunk == self.format.text_limit else {"text", "audio_start"})

    def _allowed_between_groups(self) -> frozenset[str]:
        if 0 < self.text_in_chunk < self.format.text_limit and self.audio_in_chunk == 0:
            return frozenset({"linguistic"} if self.text_done else {"text", "linguistic"})
        if self.audio_in_chunk == 0:  # a segment holds at least one group, a full text chunk is followed by audio
            return frozenset({"linguistic"})
        kinds = {"linguistic", "audio_end"}
        if not self.text_done and self.audio_in_chunk == self.format.audio_chunk:
            kinds.add("text")
        return frozenset(kinds)

    def advance(self, token_id: int) -> None:
        """Take one token.

        Raises:
            ValueError: the token breaks the grammar; the message says what was expected.
        """
        kind = self.kind(token_id)
        if kind not in self.allowed():
            raise ValueError(
                f"{kind} token {token_id} is not allowed here; expected {', '.join(sorted(self.allowed()))}"
            )
        getattr(self, f"_take_{kind}")()

    def accepts(self, token_ids: list[int]) -> bool:
        """True if `token_ids`, `<|EOT|>` included, are one complete answer from here on."""
        try:
            for token_id in token_ids:
                self.advance(token_id)
        except ValueError:
            return False
        return self.finished

    def _take_text(self) -> None:
        if self.in_segment and self.audio_in_chunk:
            self.text_in_chunk = self.audio_in_chunk = 0
        self.text_in_chunk += 1

    def _take_audio_start(self) -> None:
        # a short chunk, or none, means that the text is over; after a full one more text may follow its audio
        self.text_done = self.text_in_chunk < self.format.text_limit
        self.in_segment = True
        self.audio_in_chunk = 0

    def _take_linguistic(self) -> None:
        if self.audio_in_chunk % GROUP_SIZE == 0:
            short_text = self.audio_in_chunk == 0 and 0 < self.text_in_chunk < self.format.text_limit
            # audio that goes on where text could have come says that the text is over
            self.text_done = self.text_done or short_text or self.audio_in_chunk == self.format.audio_chunk
        self.audio_in_chunk += 1

    def _take_semantic(self) -> None:
        self.audio_in_chunk += 1

    def _take_audio_end(self) -> None:
        self.in_segment = self.text_done = False
        self.segment_closed = True
        self.text_in_chunk = self.audio_in_chunk = 0

    def _take_eot(self) -> None:
        self.finished = True
