"""Recordings of a selection, read as the audio loader reads them: what is unusable is set aside and named.

Whether a recording is usable depends on its file alone. So as long as files stay as they are, it is set aside by
whichever process reads it, and by a resumed run too.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.audio.io import AudioError, duration_s
from megatron_aqaa.data.audio_loader import AudioLoaderConfig
from megatron_aqaa.data.audio_loading.records import AudioRecord, AudioSource
from megatron_aqaa.data.audio_loading.rejects import Rejects
from megatron_aqaa.data.manifest import Recording
from megatron_aqaa.data.torch_loader import BatchReader

Item = TypeVar("Item")


class RecordingReader:
    """Index → waveform, or None for a recording that cannot be read or is not as long as the manifest says.

    Args:
        manifest: where the recordings are from.
        recordings: one or more.
        sample_rate_hz: of the waveforms.
    """

    def __init__(self, manifest: Path, recordings: Sequence[Recording], sample_rate_hz: int) -> None:
        self.manifest, self.rejects = manifest, Rejects()
        self.unusable: set[int] = set()
        config = AudioLoaderConfig(AudioSource(manifest), sample_rate_hz=sample_rate_hz, num_workers=0)
        records = [_record(recording) for recording in recordings]
        self.reader = BatchReader(config, records, 0, [np.array([i]) for i in range(len(records))])

    def __len__(self) -> int:
        return len(self.reader)

    def __call__(self, index: int) -> Tensor | None:
        """[N] float32.

        Raises:
            ValueError: no recording is left.
        """
        if index not in self.unusable:
            loaded = self.reader[index]
            if loaded.features is not None:
                return loaded.features[0]
            self.unusable.add(index)
            self.rejects.note(loaded.rejects)
        if len(self.unusable) == len(self):
            reason = next(iter(self.rejects.values()))
            raise ValueError(f"{self.manifest}: all {len(self)} recordings are unusable; the first: {reason}")
        return None


def usable(one: Callable[[int], Item | None], count: int, limit: int) -> Iterator[Item]:
    """The first `limit` of the items `one(0) … one(count − 1)` that there are."""
    return itertools.islice((item for item in map(one, range(count)) if item is not None), limit)


def write_rejects(directory: Path, *readers: RecordingReader) -> None:
    """Name what this process set aside in `<directory>/rejects-<rank>.jsonl`, behind what it did before a resume."""
    path = directory / f"rejects-{platform.Replicas.join().rank}.jsonl"
    rejects = Rejects.read(path)
    for reader in readers:
        rejects.update(reader.rejects)
    if rejects:
        rejects.write(path)


def _record(recording: Recording) -> AudioRecord:
    """With the length that the header promises where the manifest tells none."""
    length_s = recording.duration_s
    if not length_s:
        with contextlib.suppress(AudioError):  # said when it is read
            length_s = duration_s(recording.audio)
    return AudioRecord(str(recording.id), recording.audio, length_s)
