"""The contract of the audio loaders: settings in, batches out, one position to resume from.

Two classes keep it: `TorchLoader` (soundfile, soxr, torch) and `DaliLoader` (NVIDIA DALI). Plan, random numbers and
rejects are here, so that both give the same batches, and one may go on where the other stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from megatron_aqaa.audio.io import check_resampler
from megatron_aqaa.data.audio_loading.batch_plan import Batching, BatchPlan, Indices
from megatron_aqaa.data.audio_loading.effects import Effects
from megatron_aqaa.data.audio_loading.features import Features
from megatron_aqaa.data.audio_loading.records import AudioRecord, AudioSource, Reject, read_index
from megatron_aqaa.data.audio_loading.rejects import Rejects


@dataclass(frozen=True)
class AudioLoaderConfig:
    """What to load and how.

    Attributes:
        source: Where recordings are.
        features: What batches hold.
        effects: What is done to waveforms before.
        batching: Which recordings go together.
        sample_rate_hz: Rate of all waveforms; others are resampled.
        resampler: "soxr", as `load_waveform` and so all serving does it; or "dali", which only `DaliLoader` has.
        rank: Data-parallel rank; ranks share the recordings out.
        world_size: Ranks.
        num_workers: `TorchLoader`: processes, 0 reads in this one. `DaliLoader`: threads, at least one.
    """

    source: AudioSource
    features: Features = Features()
    effects: Effects = Effects()
    batching: Batching = Batching()
    sample_rate_hz: int = 16000
    resampler: Literal["soxr", "dali"] = "soxr"
    rank: int = 0
    world_size: int = 1
    num_workers: int = 2

    def __post_init__(self) -> None:
        """Raises ValueError for settings that do not fit together."""
        self.features.check_rate(self.sample_rate_hz)
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} must lie in 0 … {self.world_size - 1}")
        if self.num_workers < 0:
            raise ValueError(f"num_workers {self.num_workers} must not be negative")
        if self.source.max_duration_s > self.batching.max_batch_s:
            raise ValueError(
                f"source.max_duration_s {self.source.max_duration_s} is more than batching.max_batch_s "
                f"{self.batching.max_batch_s}: no batch could hold such a recording"
            )

    @property
    def min_samples(self) -> int:
        """Shortest waveform that can be used."""
        return max(self.features.min_samples, self.effects.min_samples(self.sample_rate_hz))


@dataclass(frozen=True)
class AudioBatch:
    """Some recordings.

    Attributes:
        features: [B, F, M] float32, or waveforms [B, N]; zeros behind the end of each.
        lengths: [B] int64, frames or samples of each.
        records: What each is.
    """

    features: Tensor
    lengths: Tensor
    records: tuple[AudioRecord, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the records."""
        return tuple(record.id for record in self.records)


class Loaded(NamedTuple):
    """What a loader makes of a batch of the plan.

    Attributes:
        features: As in `AudioBatch`; None if no recording was left.
        lengths: As in `AudioBatch`.
        indices: Of the recordings in it.
        rejects: Of the others.
    """

    features: Tensor | None
    lengths: Tensor | None
    indices: list[int]
    rejects: list[Reject]


class AudioLoader(ABC):
    """Iterating gives what is left of an epoch, on one rank; the next iteration gives the next epoch.

    A recording that cannot be read is left out of its batch, and its neighbours stay. `rejects` names it and says why;
    warnings count. A batch of nothing but such recordings is left out, so its rank has one fewer.

    Args:
        config: The settings.

    Raises:
        ValueError: The source cannot be read or holds nothing usable.
    """

    def __init__(self, config: AudioLoaderConfig) -> None:
        self.config = config
        self.records, found = read_index(config.source)
        self.rejects = Rejects()
        self.rejects.note(found)
        durations_s = np.array([record.duration_s for record in self.records])
        self.plan = BatchPlan(durations_s, config.batching, config.world_size)
        self.epoch, self.step = 0, 0

    @property
    @abstractmethod
    def resampler(self) -> str:
        """What brings recordings to `sample_rate_hz`; a data set or checkpoint made with this loader notes it."""

    @abstractmethod
    def load(self, epoch: int, batches: list[Indices]) -> Iterator[Loaded]:
        """One after the other, the batches of the plan."""

    def __len__(self) -> int:
        """Batches of the current epoch on this rank, those already given included."""
        return len(self.plan.epoch(self.epoch)) // self.config.world_size

    def __iter__(self) -> Iterator[AudioBatch]:
        own = self.plan.epoch(self.epoch)[self.config.rank :: self.config.world_size]
        for loaded in self.load(self.epoch, own[self.step :]):
            self.step += 1
            self.rejects.note(loaded.rejects)
            if loaded.features is not None and loaded.lengths is not None:
                records = tuple(self.records[i] for i in loaded.indices)
                yield AudioBatch(loaded.features, loaded.lengths, records)
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Position behind the last batch that was given, as JSON can hold it."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "resampler": self.resampler,
            "settings": self._settings(),
            "rejects": dict(self.rejects),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there: the following batches are those of a run that was never stopped.

        Raises:
            ValueError: The state belongs to other recordings or settings, or another resampler; says which.
        """
        check_resampler(state["resampler"], "the state of the audio loader", self.resampler)
        settings = self._settings()
        differing = [
            f"{name} {state['settings'].get(name)} → {settings[name]}"
            for name in settings
            if state["settings"].get(name) != settings[name]
        ]
        if differing:
            raise ValueError(f"the state of the audio loader is of other settings: {'; '.join(differing)}")
        self.epoch, self.step = state["epoch"], state["step"]
        self.rejects.update(state["rejects"])

    def write_rejects(self, path: str | Path) -> None:
        """Write what was set aside so far as JSON Lines `{"audio", "reason"}`."""
        self.rejects.write(path)

    def _settings(self) -> dict[str, Any]:
        """All that changes what batches hold, as plain data."""
        config = dataclasses.asdict(self.config)
        for name in ("source", "resampler", "rank", "num_workers"):
            del config[name]
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(f"{record.id}\n{record.duration_s:.6f}\n".encode("utf-8", "surrogateescape"))
        return json.loads(json.dumps({**config, "recordings": f"{len(self.records)}, {digest.hexdigest()[:16]}"}))
