"""What both tokenizers hear: a prepared waveform, log-mel filter banks at 100 Hz, and a pitch track for training."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from megatron_aqaa.audio.io import normalize_peak
from megatron_aqaa.audio.mel import MelConfig, MelSpectrogram
from megatron_aqaa.audio.pitch import PitchConfig, estimate_pitch

SAMPLE_RATE_HZ = 16_000
FRAMES_PER_GROUP = 12
SAMPLES_PER_GROUP = 1920  # 120 ms: 2 linguistic + 3 semantic codes, 12 frames of 10 ms
PITCH_REFERENCE_HZ = 150.0

# Paraformer's and Kaldi's filter banks: 80 bands, 25 ms windows every 10 ms. The floor is the level of faint dither,
# so that digital silence, which no microphone makes, does not look like a sound of its own.
FILTER_BANK = MelConfig(n_fft=512, win_length=400, hop_length=160, scale="htk", power=2, floor=1e-4)

# Pitch is searched in an 8 kHz copy: half the cost, and interpolation between lags makes up for the coarser grid.
_PITCH = PitchConfig(sample_rate_hz=8000, hop_length=160, window_length=512)


def prepare_waveform(waveform: torch.Tensor) -> torch.Tensor:
    """Peak-normalise and pad mono speech to whole groups: the one preparation of all audio for the language model.

    Args:
        waveform: [N] samples at 16 kHz, any scale.

    Returns:
        [N'] float32, N' the next multiple of 1920; the padding is silence.

    Raises:
        ValueError: not one-dimensional, empty, shorter than half a group (60 ms), or not finite.
    """
    if waveform.dim() != 1:
        raise ValueError(f"waveform has shape {list(waveform.shape)}; expected mono samples [N] at 16 kHz")
    if len(waveform) < SAMPLES_PER_GROUP // 2:
        shortest = SAMPLES_PER_GROUP // 2
        raise ValueError(f"waveform has {len(waveform)} samples; speech needs at least {shortest} (60 ms at 16 kHz)")
    if not torch.isfinite(waveform).all():
        raise ValueError("waveform holds NaN or infinite samples; the recording is damaged, export it again")
    return functional.pad(normalize_peak(waveform.float()), (0, -len(waveform) % SAMPLES_PER_GROUP))


class FilterBank(nn.Module):
    """Log-mel energies of a prepared waveform: [N] → [F, M] float32, frame i centred on its own 10 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = MelSpectrogram(FILTER_BANK)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.mel(waveform[None])[0].T

    def of_padded(self, stretch: torch.Tensor) -> torch.Tensor:
        """As `forward`, of a stretch with `mel.margin` more samples on both sides."""
        return self.mel.of_padded(stretch[None])[0].T


def pitch_octaves(waveform: torch.Tensor) -> torch.Tensor:
    """Pitch of a prepared waveform at 50 Hz: [N] → [F / 2] octaves over 150 Hz, NaN where unvoiced."""
    smoothing = waveform.new_tensor([[[1.0, 3.0, 3.0, 1.0]]]) / 8
    halved = functional.conv1d(waveform[None, None], smoothing, stride=2, padding=1)[0]
    track = estimate_pitch(halved, _PITCH)
    octaves = torch.log2(track.f0_hz / PITCH_REFERENCE_HZ).masked_fill(~track.voiced, torch.nan)
    # 2–3 % of the frames are an octave off; a voice does not jump a third within 180 ms and back
    around = functional.pad(octaves, (4, 4), value=torch.nan).unfold(1, 9, 1).nanmedian(-1).values
    return octaves.masked_fill((octaves - around).abs() > 0.25, torch.nan)[0]
