"""The whole chain in one object: a spoken question in, text and speech out, at once or piece by piece."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy.typing as npt
import yaml
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.checkpoint.store import latest_checkpoint, load_model, require_checkpoint
from megatron_aqaa.config import parse_config
from megatron_aqaa.inference.answer_layout import taught_answer_format
from megatron_aqaa.inference.engine import AnswerEngine
from megatron_aqaa.inference.question import check_training_resampler
from megatron_aqaa.inference.sampling import Sampling
from megatron_aqaa.model import AQAAModel, ModelConfig, build_model
from megatron_aqaa.tokenizer.chat import AudioSegment, ChatTemplate, Turn
from megatron_aqaa.tokenizer.huggingface_text import open_text
from megatron_aqaa.tokenizer.open import open_tokenizer
from megatron_aqaa.tokenizer.speech import SpeechTokenizer
from megatron_aqaa.tokenizer.text import TextCodec
from megatron_aqaa.vocabulary import AnswerFormat, Vocabulary
from megatron_aqaa.vocoder.group_repair import GroupFault
from megatron_aqaa.vocoder.token_vocoder import TokenVocoder

_LOGGER = logging.getLogger(__name__)

LAST_STAGES = ("merged", "sft")
"""Folders of a run whose model may answer, the better trained first."""


@dataclass(frozen=True)
class SpokenAnswer:
    """An answer to hear and to read.

    Attributes:
        text: what it says.
        waveform: [N] float32 at 16 kHz.
        token_ids: what the model generated.
    """

    text: str
    waveform: Tensor
    token_ids: list[int]


class SpokenAnswerer:
    """Tokenizers, language model and vocoder of one run. Use as a context manager: it holds a process group."""

    def __init__(
        self,
        tokenizer: SpeechTokenizer,
        text_tokenizer: TextCodec,
        engine: AnswerEngine,
        vocoder: TokenVocoder,
    ) -> None:
        self.tokenizer, self.text_tokenizer, self.engine, self.vocoder = tokenizer, text_tokenizer, engine, vocoder
        self.vocabulary = engine.vocabulary
        self.template = ChatTemplate(text_tokenizer, self.vocabulary, engine.answer_format)

    @classmethod
    def load(cls, run: Path, model: Path | None = None, answer_format: AnswerFormat | None = None) -> SpokenAnswerer:
        """Read a run directory with `tokenizer`, `vocoder` and a language-model run.

        Args:
            run: the run directory.
            model: run or checkpoint of the language model; None takes the last stage that there is of `LAST_STAGES`.
                It may have been saved at any parallel layout.
            answer_format: layout of answers; None: that of the data which the model was trained on.

        Raises:
            ValueError: something is missing; the message names it and what makes it.
        """
        if not run.is_dir():
            raise ValueError(f"{run}: no such run directory; run `make demo` first, or name another with --run")
        tokenizer = open_tokenizer(run / "tokenizer")
        text_tokenizer = open_text(run / "tokenizer")
        vocoder = TokenVocoder.load(run / "vocoder")
        checkpoint = require_checkpoint(model or _last_stage(run))
        answer_format = answer_format or taught_answer_format(_config_path(checkpoint))
        check_training_resampler(_config_path(checkpoint))
        engine = AnswerEngine(
            _load_language_model(checkpoint, tokenizer.vocabulary), tokenizer.vocabulary, answer_format
        )
        return cls(tokenizer, text_tokenizer, engine, vocoder)

    def __enter__(self) -> SpokenAnswerer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        platform.shutdown()

    def prompt(self, waveform: Tensor) -> list[int]:
        """Token ids of a spoken question [N] at 16 kHz, up to where the answer begins."""
        return self.prompt_of_tokens(self.tokenizer.token_ids(self.tokenizer.encode(waveform)))

    def prompt_of_tokens(self, audio_ids: npt.ArrayLike) -> list[int]:
        """The same for a question whose audio tokens [5n] are at hand."""
        return self.template.prompt([Turn("human", (AudioSegment(audio_ids),))]).tolist()

    def answer(
        self, waveform: Tensor, sampling: Sampling | None = None, on_text: Callable[[str], None] = lambda words: None
    ) -> SpokenAnswer:
        """Answer a spoken question [N] at 16 kHz.

        Args:
            waveform: the question.
            sampling: how the answer is drawn; its seed also decides the vocoder's noise.
            on_text: called with words as they are chosen.
        """
        sampling = sampling or Sampling()
        token_ids = list(self._telling(self.engine.stream(self.prompt(waveform), sampling), on_text))
        return SpokenAnswer(self.text(token_ids), self.speech(token_ids, sampling.seed), token_ids)

    def stream(
        self, waveform: Tensor, sampling: Sampling | None = None, on_text: Callable[[str], None] = lambda words: None
    ) -> Iterator[Tensor]:
        """The same, spoken while it is generated: yields [n] samples whenever the next stretch is ready."""
        sampling = sampling or Sampling()
        tokens = self._telling(self.engine.stream(self.prompt(waveform), sampling), on_text)
        audio = (token_id for token_id in tokens if self.vocabulary.is_audio(token_id))
        return self.vocoder.stream(audio, sampling.seed, on_fault=_report)

    def _telling(self, tokens: Iterator[int], on_text: Callable[[str], None]) -> Iterator[int]:
        """Pass tokens on, and tell their words at once."""
        token_ids: list[int] = []
        told = ""
        for token_id in tokens:
            token_ids.append(token_id)
            text = self.text(token_ids)
            if text != told:
                on_text(text[len(told) :])
                told = text
            yield token_id

    def text(self, token_ids: Sequence[int]) -> str:
        """The words in an answer's tokens."""
        return self.text_tokenizer.decode([i for i in token_ids if i < self.vocabulary.text_size])

    def speech(self, token_ids: Sequence[int], seed: int = 0) -> Tensor:
        """[N] samples at 16 kHz of an answer's tokens; what is no whole group is dropped, with a warning."""
        audio = [token_id for token_id in token_ids if self.vocabulary.is_audio(token_id)]
        return self.vocoder.synthesize(audio, seed, _report)


def _report(fault: GroupFault) -> None:
    """The engine keeps to whole groups, but a limit on the length may cut one off; other models keep to nothing."""
    _LOGGER.warning("audio tokens of an answer: %s", fault)


def _last_stage(run: Path) -> Path:
    return next((run / name for name in LAST_STAGES if latest_checkpoint(run / name)), run / LAST_STAGES[-1])


def _load_language_model(checkpoint: Path, vocabulary: Vocabulary) -> AQAAModel:
    """The model of a checkpoint in one process; files are checked before that one joins."""
    path = _config_path(checkpoint)
    config = parse_config(ModelConfig, yaml.safe_load(path.read_text())["model"], str(path))
    platform.initialize(platform.ParallelConfig())
    try:
        chunks = build_model(config, vocabulary)
        load_model(chunks, checkpoint)
    except BaseException:
        platform.shutdown()
        raise
    return chunks[0]


def _config_path(checkpoint: Path) -> Path:
    path = checkpoint.parent.parent / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; tools/train.py writes it beside the checkpoints")
    return path
