"""The audio loader of soundfile, soxr and torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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


def read_waveform(record: AudioRecord, config: AudioLoaderConfig) -> torch.Tensor:
    """[N] as it is recorded, at the rate of the settings.

    Raises:
        AudioError: It cannot be read, is too short, or is longer than all recordings may be, unlike its record says.
    """
    parts, count = [], 0
    for block in read_blocks(record.audio, config.sample_rate_hz):
        parts.append(block)
        count += len(block)
        if count > 1.1 * config.source.max_duration_s * config.sample_rate_hz:  # mp3 headers are not exact
            raise AudioError(
                f"{record.name}: goes on after {record.duration_s:g} s, which its record promises; correct it"
            )
    if count < config.min_samples:
        raise AudioError(f"{record.name}: {count} samples, at least {config.min_samples} are needed")
    return parts[0] if len(parts) == 1 else torch.cat(parts)
