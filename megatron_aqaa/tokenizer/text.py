"""Text pieces: a SentencePiece model with the chat markers at the published ids."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import sentencepiece

from megatron_aqaa.vocabulary import Vocabulary

ROLES = ("system", "human", "assistant")
_MARKERS = {"<|EOT|>": 3, "<|BOT|>": 4}


@dataclass(frozen=True)
class TextConfig:
    """How a text model is trained.

    Attributes:
        size: pieces in all, with the five special ones, the role headers and the newline.
        required_characters: get a piece of their own even if the training text is too small to need them;
            without this a model of 160 pieces lost "j" and "z".
        normalization: a SentencePiece rule; `nmt_nfkc_cf` also folds case, `identity` changes nothing.
    """

    size: int = 160
    required_characters: str = "abcdefghijklmnopqrstuvwxyz"
    normalization: str = "nmt_nfkc_cf"


def train_text_model(texts: Iterable[str], path: str | Path, config: TextConfig) -> None:
    """Train a unigram model on `texts` and write it to `path`; equal sentences count once.

    Role headers (`human\\n` …) and the newline are pieces of their own: SentencePiece would otherwise turn the newline
    into a space and spend half a dozen pieces on each header.

    Raises:
        ValueError: no text, or so little that it does not hold `config.size` different pieces.
    """
    sentences = sorted(set(texts))
    if not sentences:
        raise ValueError(f"{path}: no text to train on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=config.size,
            character_coverage=1.0,
            required_chars=config.required_characters,
            normalization_rule_name=config.normalization,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,  # padding is id 0, as in the released model
            control_symbols=list(_MARKERS),
            user_defined_symbols=[*(f"{role}\n" for role in ROLES), "\n"],
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise ValueError(f"{path}: {len(sentences)} sentences do not make {config.size} pieces: {reason}") from None
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(model.getvalue())


class TextCodec(Protocol):
    """Text ↔ ids: what templates and data sets need of a text model, whatever its kind."""

    def __len__(self) -> int:
        """Text ids are `0 … len − 1`."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; a marker written out in it stays text."""

    def encode_role(self, role: str) -> list[int]:
        """Ids of `"{role}\\n"`, which follow the marker that starts a turn."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids; markers give nothing."""


class TextTokenizer:
    """Text ↔ piece ids.

    Raises:
        ValueError: there is no such file, it is not a SentencePiece model, or `<|EOT|>`, `<|BOT|>` are not pieces 3, 4.
    """

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such text model; make it with tools/train_tokenizer.py text")
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except RuntimeError as error:
            raise ValueError(f"{path}: not a SentencePiece model: {error}") from None
        for marker, expected in _MARKERS.items():
            if self.processor.piece_to_id(marker) != expected:
                raise ValueError(f"{path}: {marker} is piece {self.processor.piece_to_id(marker)}; expected {expected}")

    def __len__(self) -> int:
        return self.processor.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; a marker written out in it stays text."""
        return self.processor.encode(text)

    def encode_role(self, role: str) -> list[int]:
        """Ids of `"{role}\\n"`, which follow `<|BOT|>`; one id where the header is a piece of its own."""
        header = self.processor.piece_to_id(f"{role}\n")
        return [header] if header != self.processor.unk_id() else self.encode(f"{role}\n")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of piece ids; markers give nothing."""
        return self.processor.decode([int(token_id) for token_id in token_ids])

    def vocabulary(self) -> Vocabulary:
        """The merged vocabulary of this text model: the codebooks follow its pieces, then the audio markers."""
        return Vocabulary.for_text(len(self))
