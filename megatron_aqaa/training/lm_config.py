"""Everything that one language-model run is made of: one YAML file, one record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_aqaa.data.datasets import DataConfig
from megatron_aqaa.model.config import ModelConfig
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.training.frozen import Frozen
from megatron_aqaa.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class LoopConfig:
    """How long, how big, where from.

    Attributes:
        steps: optimizer steps in all, those of earlier sessions included.
        micro_batch_size: sequences per forward pass of one data-parallel rank.
        global_batch_size: sequences per optimizer step over all ranks.
        save_interval: steps between checkpoints; one is always written at the end and on a stop signal.
        validation_interval: steps between passes over `data.validation`; one is always made at the end if it is set.
        keep_checkpoints: newest checkpoints to keep.
        seed: initial weights and data order.
        init_from: run or checkpoint directory whose weights (not optimizer) the run starts from.
        grow_vocabulary: `init_from` is a text model: its first `text_size` rows of embedding and head are kept, those
            of audio codes and markers are drawn from the distribution of these.
        frozen: parts that the run leaves as they are: "backbone" (all but embedding and head), "text_rows" (of
            embedding and head).
        code_vectors: tokenizer directory; embedding and head rows of the audio codes start from a random projection
            of its code vectors, so that codes that sound alike start alike.
    """

    steps: int
    micro_batch_size: int
    global_batch_size: int
    save_interval: int = 500
    validation_interval: int = 500
    keep_checkpoints: int = 2
    seed: int = 0
    init_from: Path | None = None
    grow_vocabulary: bool = False
    frozen: tuple[Frozen, ...] = ()
    code_vectors: Path | None = None

    def __post_init__(self) -> None:
        if self.grow_vocabulary and self.init_from is None:
            raise ValueError("training.grow_vocabulary needs training.init_from: the checkpoint of a text model")


@dataclass(frozen=True)
class TrainConfig:
    """A language-model run.

    Attributes:
        run: directory for checkpoints, `log.jsonl` and the resolved configuration.
        vocabulary: YAML file with the id layout.
    """

    run: Path
    vocabulary: Path
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    training: LoopConfig
    parallel: ParallelConfig = ParallelConfig()
