"""The audio loader of NVIDIA DALI (extra `[dali]`), on the CPU or on a GPU."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from megatron_aqaa import platform
from megatron_aqaa.audio import io
from megatron_aqaa.audio.io import AudioError
from megatron_aqaa.data.audio_loader import AudioLoader, AudioLoaderConfig, Loaded
from megatron_aqaa.data.audio_loading import dali_pipeline
from megatron_aqaa.data.audio_loading.batch_plan import Indices
from megatron_aqaa.data.audio_loading.dali_pipeline import Device, Inputs, build_pipeline
from megatron_aqaa.data.audio_loading.effects import draw, white_noise
from megatron_aqaa.data.audio_loading.encoded import Encoded, read_encoded
from megatron_aqaa.data.audio_loading.features import FeatureExtractor, Padded
from megatron_aqaa.data.audio_loading.records import Reject
from megatron_aqaa.data.torch_loader import read_waveform


class _Prepared(NamedTuple):
    """A batch on its way through DALI."""

    indices: list[int]
    rejects: list[Reject]


class DaliLoader(AudioLoader):
    """See `AudioLoader`. Threads read files ahead, DALI decodes them and computes.

    All that is random comes from `effects.draw`, nothing from DALI's own generators: a position is all the state
    there is, and both loaders give the same batches.

    Args:
        config: The settings.
        device: "gpu" computes effects and features on this process's GPU, where the batches stay.
    """

    def __init__(self, config: AudioLoaderConfig, device: Device = "cpu") -> None:
        if device == "gpu" and platform.device().type != "cuda":
            raise ValueError("device 'gpu': PyTorch finds no CUDA device here; use 'cpu'")
        if config.resampler == "dali":
            warnings.warn(
                "DALI's resampler does not filter before it lowers a rate: what lies above the new band folds back; "
                "resampler 'soxr' takes it out",
                stacklevel=2,
            )
        super().__init__(config)
        self.device = device
        self.extract = FeatureExtractor(
            config.features, config.sample_rate_hz, platform.device() if device == "gpu" else "cpu"
        )
        self._damaged: dict[int, str] = {}  # what passes for whole until it is decoded
        self._not_for_dali: set[int] = set()  # what soundfile decodes in its place

    @property
    def resampler(self) -> str:
        """See `AudioLoader`."""
        return dali_pipeline.RESAMPLER if self.config.resampler == "dali" else io.RESAMPLER

    def load(self, epoch: int, batches: list[Indices]) -> Iterator[Loaded]:
        """See `AudioLoader`."""
        done = 0
        while done < len(batches):
            under_way: deque[_Prepared] = deque()
            try:
                for loaded in self._run(epoch, batches[done:], under_way):
                    done += 1
                    yield loaded
            except RuntimeError:  # a file that DALI cannot decode ends its pipeline, and its message names no file
                if not self._look_through([index for prepared in under_way for index in prepared.indices]):
                    raise

    def _run(self, epoch: int, batches: list[Indices], under_way: deque[_Prepared]) -> Iterator[Loaded]:
        """The batches through one pipeline."""
        threads = max(1, self.config.num_workers)
        device_id = platform.device().index if self.device == "gpu" else None
        with ThreadPoolExecutor(threads) as pool:
            source = self._inputs(epoch, batches, pool, under_way)
            pipeline = build_pipeline(self.config, source, self.device, device_id, threads)
            while True:
                try:
                    outputs = pipeline.run()
                except StopIteration:
                    break
                while not under_way[0].indices:
                    yield Loaded(None, None, *under_way.popleft())
                yield Loaded(*self._features(*outputs), *under_way.popleft())
        yield from (Loaded(None, None, *prepared) for prepared in under_way)

    def _inputs(
        self, epoch: int, batches: list[Indices], pool: ThreadPoolExecutor, under_way: deque[_Prepared]
    ) -> Iterator[Inputs]:
        """What DALI gets, batch by batch; all are noted in `under_way`, those of nothing but damage too."""
        reading = deque(self._read(pool, batch) for batch in batches[:1])
        for number, batch in enumerate(batches):
            reading += (self._read(pool, later) for later in batches[number + 1 : number + 2])
            prepared, found = self._readable(batch, reading.popleft())
            under_way.append(prepared)
            if found:
                yield self._drawn(epoch, prepared.indices, found)

    def _read(self, pool: ThreadPoolExecutor, batch: Indices) -> list[Future[Encoded]]:
        return [pool.submit(self._encoded, index) for index in batch.tolist()]

    def _encoded(self, index: int) -> Encoded:
        if index in self._damaged:
            raise AudioError(self._damaged[index])
        return read_encoded(self.records[index], self.config, for_dali=index not in self._not_for_dali)

    def _readable(self, batch: Indices, reading: list[Future[Encoded]]) -> tuple[_Prepared, list[Encoded]]:
        prepared, found = _Prepared([], []), list[Encoded]()
        for index, future in zip(batch.tolist(), reading, strict=True):
            try:
                found.append(future.result())
                prepared.indices.append(index)
            except AudioError as error:
                prepared.rejects.append(Reject(self.records[index].name, str(error)))
        return prepared, found

    def _drawn(self, epoch: int, indices: list[int], found: list[Encoded]) -> Inputs:
        """Files, and the random numbers of their effects."""
        effects = self.config.effects
        draws = [draw(effects, epoch, index) for index in indices]
        noises = (white_noise(d, e.num_samples, effects.seed).numpy() for d, e in zip(draws, found, strict=True))
        return Inputs(
            [encoded.content for encoded in found],
            [np.array(drawn.gain, np.float32) for drawn in draws],
            list(noises) if effects.noise_db else [],
        )

    def _features(self, values: Any, num_samples: Any) -> Padded:
        """Features from DALI's outputs; copies, since DALI will overwrite these."""
        tensor = torch.from_dlpack(values.as_tensor())
        lengths = torch.from_dlpack(num_samples.as_tensor()).flatten().tolist()
        if self.config.features.kind in ("whisper", "log_mel"):
            padded = self.extract.of_energies(tensor, lengths)
        else:
            padded = self.extract([waveform[:n] for waveform, n in zip(tensor, lengths, strict=True)])
        if self.device == "gpu":
            torch.accelerator.synchronize()  # DALI uses its memory again on a stream of its own
        return padded

    def _look_through(self, indices: list[int]) -> bool:
        """Read recordings one by one, as `TorchLoader` does, and note which cannot be; DALI gets none of them again.

        Returns:
            Whether that changes anything.
        """
        new = set(indices) - self._not_for_dali
        for index in new:
            try:
                read_waveform(self.records[index], self.config)
            except AudioError as error:
                self._damaged[index] = str(error)
        self._not_for_dali |= new
        return bool(new)
