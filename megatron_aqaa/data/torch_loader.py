"""The audio loader of soundfile, soxr and torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from megatron_aqaa.audio.io import RESAMPLER, AudioError, read_blocks
from megatron_aqaa.data.audio_loader import AudioLoader, AudioLoaderConfig, Loaded
from megatron_aqaa.data.audio_loading.batch_plan import Indices
from megatron_aqaa.data.audio_loading.effects import apply_effects, draw
from megatron_aqaa.data.audio_loading.features import FeatureExtractor
from megatron_aqaa.data.audio_loading.records import AudioRecord, Reject


class TorchLoader(AudioLoader):
    """See `AudioLoader`. Worker processes read whole batches ahead; the order does not depend on their number."""

    def __init__(self, config: AudioLoaderConfig) -> None:
        if config.resampler != "soxr":
            raise ValueError(f"resampler {config.resampler!r}: this loader has soxr only; DaliLoader has both")
        super().__init__(config)

    @property
    def resampler(self) -> str:
        """See `AudioLoader`."""
        return RESAMPLER

    def load(self, epoch: int, batches: list[Indices]) -> Iterator[Loaded]:
        """See `AudioLoader`."""
        loader = DataLoader(
            BatchReader(self.config, self.records, epoch, batches),
            batch_size=None,
            num_workers=self.config.num_workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # or else it draws from the generator that dropout uses, and a resume differs
        )
        yield from loader


class BatchReader(Dataset[Loaded]):
    """Batch number → batch, in whichever process."""

    def __init__(
        self, config: AudioLoaderConfig, records: Sequence[AudioRecord], epoch: int, batches: Sequence[Indices]
    ) -> None:
        self.config, self.records, self.epoch, self.batches = config, records, epoch, batches
        self.extract = FeatureExtractor(config.features, config.sample_rate_hz)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Loaded:
        waveforms, indices, rejects = [], [], []
        for index in self.batches[number].tolist():
            try:
                waveforms.append(self._waveform(index))
                indices.append(index)
            except AudioError as error:
                rejects.append(Reject(self.records[index].name, str(error)))
        if not waveforms:
            return Loaded(None, None, [], rejects)
        return Loaded(*self.extract(waveforms), indices, rejects)

    def _waveform(self, index: int) -> torch.Tensor:
        """[N] with its effects."""
        config, record = self.config, self.records[index]
        waveform = read_waveform(record, config)
        return apply_effects(waveform, config.effects, draw(config.effects, self.epoch, index), config.sample_rate_hz)


def _as_it_is(loaded: Any) -> Any:
    """Torch's own function would look for arrays in every index and name."""
    return loaded


def read_waveform(record: AudioRecord, config: AudioLoaderConfig) -> torch.Tensor:
    """[N] as it is recorded, at the rate of the settings.

    Raises:
        AudioError: It cannot be read, is too short, or is not as long as its record says.
    """
    parts, count = [], 0
    for block in read_blocks(record.audio, config.sample_rate_hz):
        parts.append(block)
        count += len(block)
        check_length(record, config, count, at_least=False)  # at once: it may go on for hours
    check_length(record, config, count)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def check_length(record: AudioRecord, config: AudioLoaderConfig, num_samples: int, at_least: bool = True) -> None:
    """Raises AudioError if a recording is too short, or its length is not what the batches were planned with.

    Args:
        record: The recording.
        config: The settings.
        num_samples: What there is of it, at the rate of the settings.
        at_least: Whether that is all.
    """
    seconds, planned_s = num_samples / config.sample_rate_hz, record.duration_s
    if at_least and num_samples < config.min_samples:
        raise AudioError(f"{record.name}: {num_samples} samples, at least {config.min_samples} are needed")
    if seconds > 1.1 * planned_s + 0.1 or (at_least and seconds < planned_s / 1.1 - 0.1):  # mp3 headers are not exact
        found = f"{seconds:.2f} s" if at_least else f"{seconds:.2f} s or more"
        raise AudioError(
            f"{record.name}: {found}, its record says {planned_s:.2f} s; correct that, or copy the file again"
        )
