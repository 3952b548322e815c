"""What an encoder hears of a prepared waveform: three kinds of log-mel features at 100 Hz."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from megatron_aqaa.audio.kaldi_fbank import KaldiFilterBank
from megatron_aqaa.audio.whisper_mel import HOP_LENGTH, WhisperMel
from megatron_aqaa.tokenizer.features import FILTER_BANK, FilterBank
from megatron_aqaa.tokenizer.speech import PIECE_SAMPLES

FrontEndKind = Literal["filter_bank", "kaldi", "whisper"]
"""`filter_bank`: of the miniature; `kaldi`: of Paraformer; `whisper`: of the released semantic tokenizer."""


class FrontEnd(nn.Module):
    """Prepared waveforms [N] of whole groups → features [N / 160, M] float32.

    Attributes:
        num_mels: M.
        zero: the value of a feature of energy 1, full scale 1.
        log_scale: natural logarithms of energy in one unit of a feature.
    """

    num_mels: int
    zero: float = 0.0
    log_scale: float = 1.0

    def forward(self, waveform: Tensor) -> Tensor:
        """See the class."""
        raise NotImplementedError

    @classmethod
    def energies(cls, features: Tensor) -> Tensor:
        """Natural logarithm of energy, of features of any shape."""
        return (features - cls.zero) * cls.log_scale

    @classmethod
    def of_energies(cls, energies: Tensor) -> Tensor:
        """The inverse of `energies`."""
        return energies / cls.log_scale + cls.zero


class _FilterBank(FrontEnd):
    num_mels = FILTER_BANK.num_mels

    def __init__(self) -> None:
        super().__init__()
        self.filter_bank = FilterBank()

    def forward(self, waveform: Tensor) -> Tensor:
        return self.filter_bank(waveform)


class _Kaldi(FrontEnd):
    """Only whole windows count, so the last two frames of whole groups are missing; they repeat the last there is.

    No stack of seven that a code is made of holds them.
    """

    num_mels = 80
    zero = 2 * math.log(32768.0)

    def __init__(self) -> None:
        super().__init__()
        self.filter_bank = KaldiFilterBank(self.num_mels)

    def forward(self, waveform: Tensor) -> Tensor:
        fbank = self.filter_bank(waveform[None])
        return functional.pad(fbank[None], (0, 0, 0, len(waveform) // HOP_LENGTH - fbank.shape[1]), "replicate")[0, 0]


class _Whisper(FrontEnd):
    """Pieces of 30 s by themselves, as the adapter of the released tokenizer cuts them."""

    num_mels = 128
    zero = 1.0
    log_scale = 4 * math.log(10.0)

    def __init__(self) -> None:
        super().__init__()
        self.mel = WhisperMel(self.num_mels)

    def forward(self, waveform: Tensor) -> Tensor:
        return torch.cat([self.mel(piece[None])[0].T for piece in waveform.split(PIECE_SAMPLES)])


FRONT_ENDS: dict[FrontEndKind, type[FrontEnd]] = {"filter_bank": _FilterBank, "kaldi": _Kaldi, "whisper": _Whisper}
"""Kind → class; the class knows the sizes, an object computes."""
