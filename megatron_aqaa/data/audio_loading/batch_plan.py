"""Which recordings make a batch: those of like duration, up to a bound on the sound; equal shares for all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batching:
    """How batches are made.

    Attributes:
        max_batch_s: Bound on recordings × the longest of them, in seconds: what a padded batch holds.
        max_batch_size: Bound on recordings.
        num_buckets: Recordings are batched with those of like duration; buckets hold like amounts of sound.
        shuffle: Other batches in another order every epoch; without, all epochs are alike, the shortest first.
        seed: Of the shuffling.
    """

    max_batch_s: float = 120.0
    max_batch_size: int = 64
    num_buckets: int = 16
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for sizes below 1."""
        if self.max_batch_s <= 0 or self.max_batch_size < 1 or self.num_buckets < 1:
            raise ValueError(
                f"max_batch_s {self.max_batch_s}, max_batch_size {self.max_batch_size} and num_buckets "
                f"{self.num_buckets} must be positive"
            )


class BatchPlan:
    """Epoch → batches, a pure function of durations, settings and number of ranks.

    Every recording is in exactly one batch. All ranks have the same number of batches: the largest ones are halved
    until it comes out even, so that no rank waits for another at the end of an epoch.

    Args:
        durations_s: [R] of all recordings.
        batching: The settings.
        world_size: Ranks.

    Raises:
        ValueError: A recording that no batch can hold, fewer recordings than ranks, or, from `epoch`, batches of one
            recording each whose number is no multiple of the ranks.
    """

    def __init__(self, durations_s: npt.NDArray[np.float64], batching: Batching, world_size: int = 1) -> None:
        if durations_s.max(initial=0) > batching.max_batch_s:
            raise ValueError(
                f"a recording of {durations_s.max():.1f} s and max_batch_s {batching.max_batch_s}: raise that, or "
                f"lower max_duration_s of the source"
            )
        if len(durations_s) < world_size:
            raise ValueError(f"{len(durations_s)} recordings for {world_size} ranks: use fewer ranks")
        self.durations_s, self.batching, self.world_size = durations_s, batching, world_size
        self.epoch = lru_cache(1)(self._epoch)

    def _epoch(self, epoch: int) -> list[Indices]:
        """Batches of an epoch; rank r has every `world_size`-th from number r on."""
        random = np.random.default_rng((self.batching.seed, epoch))
        batches = [batch for bucket in self._buckets() for batch in self._cut(self._mixed(bucket, random))]
        self._even(batches)
        if not self.batching.shuffle:
            return batches
        return [batches[i] for i in random.permutation(len(batches))]

    def _buckets(self) -> list[Indices]:
        """Recordings by duration, split where each part holds as much sound as another; in source order if one."""
        if self.batching.num_buckets == 1:
            return [np.arange(len(self.durations_s))]
        order = np.argsort(self.durations_s, kind="stable")
        sums = np.cumsum(self.durations_s[order])
        borders = sums[-1] * np.arange(1, self.batching.num_buckets) / self.batching.num_buckets
        return [part for part in np.split(order, np.searchsorted(sums, borders)) if len(part)]

    def _mixed(self, bucket: Indices, random: np.random.Generator) -> Indices:
        return random.permutation(bucket) if self.batching.shuffle else bucket

    def _cut(self, bucket: Indices) -> list[Indices]:
        """Consecutive batches, each as large as the bounds allow."""
        starts, longest, limit = [0], 0.0, self.batching.max_batch_s
        for i, duration_s in enumerate(self.durations_s[bucket].tolist()):
            longest, size = max(longest, duration_s), i - starts[-1] + 1
            if longest * size > limit or size > self.batching.max_batch_size:
                starts.append(i)
                longest = duration_s
        return np.split(bucket, starts[1:])

    def _even(self, batches: list[Indices]) -> None:
        """Halve the largest batches until all ranks have as many as each other."""
        while len(batches) % self.world_size:
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            whole = batches[largest]
            if len(whole) == 1:
                raise ValueError(
                    f"{len(batches)} batches of one recording each cannot be shared evenly by {self.world_size} ranks: "
                    f"raise max_batch_s or max_batch_size"
                )
            batches[largest : largest + 1] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
