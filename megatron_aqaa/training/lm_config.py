"""Everything that one language-model run is made of: one YAML file, one record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_aqaa.data.datasets import DataConfig
from megatron_aqaa.model.config import ModelConfig
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.training.frozen import Frozen
from megatron_aqaa.training.monitoring.guards import GuardConfig
from megatron_aqaa.training.monitoring.watchdog import WatchdogConfig
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
        keep_every: checkpoints whose step is a multiple of this stay for ever; None: none.
        async_save: write checkpoints while training goes on.
        seed: initial weights and data order.
        init_from: run or checkpoint directory whose weights (not optimizer) the run starts from.
        grow_vocabulary: `init_from` is a text model: its first `text_size` rows of embedding and head are kept, those
            of audio codes and markers are drawn from the distribution of these.
        frozen: parts that the run leaves as they are: "backbone" (all but embedding and head), "text_rows" (of
            embedding and head).
        code_vectors: tokenizer directory; embedding and head rows of the audio codes start from a random projection
            of its code vectors, so that codes that sound alike start alike.
        report_interval: steps between comparisons of the ranks, which name the slowest one.
        tensorboard: also write `<run>/tensorboard`; needs the extra `track`.
        wandb_project: also log to this project of Weights & Biases; needs the extra `track`.
        peak_tflops: rate of one GPU that MFU is a share of; None: by the name of the GPU, dense bf16. Without either
            (on a CPU) there is no MFU.
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
    keep_every: int | None = None
    async_save: bool = False
    report_interval: int = 100
    tensorboard: bool = False
    wandb_project: str | None = None
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        if self.grow_vocabulary and self.init_from is None:
            raise ValueError("training.grow_vocabulary needs training.init_from: the checkpoint of a text model")
        for name in ("keep_checkpoints", "keep_every", "report_interval"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"training.{name} = {value}: must be at least 1")
        if self.peak_tflops is not None and not self.peak_tflops > 0:
            raise ValueError(f"training.peak_tflops = {self.peak_tflops}: must be above 0")


@dataclass(frozen=True)
class TrainConfig:
    """A language-model run.

    Attributes:
        run: directory for checkpoints, `log.jsonl` and the resolved configuration.
        vocabulary: YAML file with the id layout.
        guards: which steps are skipped.
        watchdog: when the run counts as hung.
    """

    run: Path
    vocabulary: Path
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    training: LoopConfig
    parallel: ParallelConfig = ParallelConfig()
    guards: GuardConfig = GuardConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
