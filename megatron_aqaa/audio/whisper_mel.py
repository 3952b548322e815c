"""Whisper's log-mel spectrogram, which the released semantic tokenizer hears."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from megatron_aqaa.audio.mel import MelConfig, mel_bands

N_FFT = 400
HOP_LENGTH = 160  # 100 frames/s
_RANGE = 8.0  # decades (of power, base 10) that are kept below the loudest value


class WhisperMel(nn.Module):
    """16 kHz waveforms [B, N] → [B, M, N // 160] float32, about −1 … 1.5.

    As openai/whisper: `whisper/audio.py` computes it: centred frames with reflected ends and the last one dropped,
    energies in slaney bands, base-10 logarithm, nothing more than 8 below the loudest value **of each waveform**,
    then `(x + 4) / 4`. Because of that maximum, frames depend on the whole waveform, and padding must not be silent
    values put behind a waveform before this: compute waveforms of unlike length one by one.

    Args:
        num_mels: 128 for the released semantic tokenizer, 80 for Whisper's smaller models.
    """

    window: Tensor
    bands: Tensor

    def __init__(self, num_mels: int = 128) -> None:
        super().__init__()
        config = MelConfig(num_mels=num_mels, n_fft=N_FFT, win_length=N_FFT, hop_length=HOP_LENGTH, power=2)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.register_buffer("bands", mel_bands(config), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """See the class.

        Raises:
            ValueError: not [B, N] with more than 200 samples, half a window: the ends could not be reflected.
        """
        if waveform.ndim != 2 or waveform.shape[1] <= N_FFT // 2:
            raise ValueError(f"expected [B, N] with more than {N_FFT // 2} samples, found {list(waveform.shape)}")
        return self.of_padded(functional.pad(waveform, (self.margin, self.margin), mode="reflect"))

    @property
    def margin(self) -> int:
        """Samples that the outermost frames hear beyond the ends of a waveform."""
        return N_FFT // 2

    def of_padded(self, padded: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """As `forward`, of waveforms [B, N + 2 · margin] whose ends are continued already.

        Args:
            padded: Behind the continued end of a shorter waveform may stand anything.
            lengths: [B] frames of each; the loudest value is looked for in these. Those behind mean nothing.
        """
        spectrum = torch.stft(padded, N_FFT, HOP_LENGTH, window=self.window, center=False, return_complex=True)
        spectrum = spectrum[..., :-1]
        # `abs` takes roots: half the time of it all
        return self.of_energy(spectrum.real.square() + spectrum.imag.square(), lengths)

    def of_energy(self, energy: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """As `of_padded`, of energies [B, 201, F]."""
        decades = torch.log10(torch.clamp(self.bands @ energy, min=1e-10))
        if lengths is None:
            loudest = decades.amax((1, 2), keepdim=True)
        else:
            loudest = torch.stack([d[:, :n].amax() for d, n in zip(decades, lengths, strict=True)])[:, None, None]
        return (torch.maximum(decades, loudest - _RANGE) + 4) / 4
