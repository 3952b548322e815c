"""What DALI does to a batch: files in memory → waveforms with effects → spectra, on the CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from megatron_aqaa.audio import whisper_mel
from megatron_aqaa.audio.mel import MelConfig
from megatron_aqaa.data.audio_loader import AudioLoaderConfig
from megatron_aqaa.data.audio_loading.effects import TRIM_MARGIN_S, TRIM_STEP_S, TRIM_WINDOW_S, Effects

try:
    import nvidia.dali as dali
    from nvidia.dali import fn, math, types
except ImportError as error:
    raise ImportError(f"the DALI loader needs NVIDIA DALI ({error}): pip install 'megatron-aqaa[dali]'") from error

Device = Literal["cpu", "gpu"]
Node = Any
"""A node of DALI's graph: one array a recording."""

RESAMPLING_QUALITY = 50.0  # DALI's own default, 16 lobes of a windowed sinc
RESAMPLER = f"DALI {dali.__version__.split('.')[0]} quality {RESAMPLING_QUALITY:g}"


class Inputs(NamedTuple):
    """A batch for the graph.

    Attributes:
        encoded: Files, [bytes] uint8 each.
        gains: Factor of each.
        noises: Noise for each, of its final level and at least as long as the recording.
    """

    encoded: Sequence[npt.NDArray[np.uint8]]
    gains: Sequence[npt.NDArray[np.float32]]
    noises: Sequence[npt.NDArray[np.float32]]


class Outputs(NamedTuple):
    """What the graph gives.

    Attributes:
        values: Of each recording: for mel features the energies of its frames [n_fft // 2 + 1, F], otherwise its
            waveform [N]; padded with zeros to the longest.
        num_samples: Of the waveforms.
    """

    values: Node
    num_samples: Node


def build_pipeline(
    config: AudioLoaderConfig, source: Iterator[Inputs], device: Device, device_id: int | None, num_threads: int
) -> Any:
    """A pipeline that takes its batches from `source`, ahead of those that are asked for."""
    pipeline = dali.Pipeline(
        batch_size=config.batching.max_batch_size,
        num_threads=num_threads,
        device_id=device_id,
    )
    with pipeline:
        pipeline.set_outputs(*graph(config, source, device))
    pipeline.build()
    return pipeline


def graph(config: AudioLoaderConfig, source: Iterator[Inputs], device: Device) -> Outputs:
    """The graph; called within a pipeline.

    Decoding, resampling and the search for silence run on the CPU, as DALI has no others (its "gpu" version of the
    last copies back and forth). All else runs on `device`.

    The graph ends with energies, and torch goes on: DALI computes mel bands in single precision, which put the 54th of
    128 bands, whose edge nearly meets a bin of the transform, 0.003 dB off; and it has no operators for Kaldi's frames,
    whose means are taken off one by one.
    """
    inputs = _external(source, config.effects)
    resampled: dict[str, Any] = {"sample_rate": config.sample_rate_hz, "quality": RESAMPLING_QUALITY}
    waveform, _ = fn.decoders.audio(
        inputs["encoded"], downmix=True, dtype=types.FLOAT, **(resampled if config.resampler == "dali" else {})
    )
    if config.effects.trim_db is not None:
        waveform = _trimmed(waveform, config.effects.trim_db, config.sample_rate_hz)
    waveform = _with_effects(waveform, inputs, config.effects, device)
    num_samples = waveform.shape(dtype=types.INT64)
    if config.features.kind == "whisper":
        return Outputs(fn.pad(_whisper_energies(waveform), axes=(1,)), num_samples)
    if config.features.kind == "log_mel":
        return Outputs(fn.pad(_energies(waveform, config.features.mel), axes=(1,)), num_samples)
    return Outputs(fn.pad(waveform, axes=(0,)), num_samples)


def _external(source: Iterator[Inputs], effects: Effects) -> dict[str, Node]:
    """Nodes of those fields of `Inputs` that the effects need."""
    fields = {"encoded": (types.UINT8, 1)}
    if effects.gain_db:
        fields["gains"] = (types.FLOAT, 0)
    if effects.noise_db:
        fields["noises"] = (types.FLOAT, 1)
    nodes = fn.external_source(
        source=(tuple(getattr(inputs, name) for name in fields) for inputs in source),
        num_outputs=len(fields),
        dtype=[dtype for dtype, _ in fields.values()],
        ndim=[ndim for _, ndim in fields.values()],
    )
    return dict(zip(fields, nodes, strict=True))


def _trimmed(waveform: Node, trim_db: float, sample_rate_hz: int) -> Node:
    """As `effects.trim`."""
    window, step, margin = (round(s * sample_rate_hz) for s in (TRIM_WINDOW_S, TRIM_STEP_S, TRIM_MARGIN_S))
    first, length = fn.nonsilent_region(
        waveform, cutoff_db=-trim_db, window_length=window, reset_interval=window * max(1, 8192 // window)
    )
    num_samples = waveform.shape(dtype=types.INT32)[0]
    start = math.max(first // step * step - margin, 0)
    stop = math.min((first + length + (step - 1)) // step * step + margin, num_samples)
    return waveform[start:stop]


def _with_effects(waveform: Node, inputs: Mapping[str, Node], effects: Effects, device: Device) -> Node:
    """As `effects.apply_effects` behind `trim`; on `device` from here."""

    def there(node: Node) -> Node:
        return node.gpu() if device == "gpu" else node

    num_samples = waveform.shape(dtype=types.INT32)
    waveform = there(waveform)
    if effects.normalize_peak:
        waveform = waveform / math.max(fn.reductions.max(math.abs(waveform)), 0.01) * 0.999
    if effects.gain_db:
        waveform = waveform * there(inputs["gains"])
    if effects.noise_db:
        waveform = waveform + there(fn.slice(inputs["noises"], start=[0], shape=num_samples, axes=[0]))
    return waveform


def _whisper_energies(waveform: Node) -> Node:
    """What `WhisperMel.of_energy` takes, and one frame more."""
    return fn.spectrogram(
        waveform,
        nfft=whisper_mel.N_FFT,
        window_length=whisper_mel.N_FFT,
        window_step=whisper_mel.HOP_LENGTH,
        window_fn=_hann(whisper_mel.N_FFT),
        center_windows=True,
        reflect_padding=True,
    )


def _energies(waveform: Node, mel: MelConfig) -> Node:
    """What `MelSpectrogram.of_energy` takes."""
    # torch puts the window in the middle of a frame of n_fft samples; DALI's frame is the window itself
    before = (mel.n_fft - mel.hop_length) // 2 - (mel.n_fft - mel.win_length) // 2
    return fn.spectrogram(
        _continued(waveform, before, mel.win_length - mel.hop_length - before),
        nfft=mel.n_fft,
        window_length=mel.win_length,
        window_step=mel.hop_length,
        window_fn=_hann(mel.win_length),
        center_windows=False,
    )


def _continued(waveform: Node, before: int, behind: int) -> Node:
    """By reflection; DALI does that itself only where frames are centred on multiples of their step."""
    parts = [waveform]
    if before:
        parts.insert(0, _backwards(waveform[1 : before + 1]))
    if behind:
        parts.append(_backwards(waveform[-behind - 1 : -1]))
    return fn.cat(*parts, axis=0)


def _backwards(waveform: Node) -> Node:
    image = fn.reshape(waveform, shape=[1, -1, 1], layout="HWC")
    return fn.reshape(fn.flip(image, horizontal=1), shape=[-1], layout="")


def _hann(length: int) -> list[float]:
    """Periodic, as torch's; DALI's own window is symmetric about a point half a sample further."""
    window: list[float] = torch.hann_window(length).tolist()
    return window
