"""What is done to a waveform before its features: silence cut off, level, gain, noise; drawn anew for every epoch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from megatron_aqaa.audio.io import normalize_peak

TRIM_WINDOW_S = 0.025
TRIM_MARGIN_S = 0.1
TRIM_STEP_S = 0.01
_BANK_SIZE = 1 << 20  # samples; a minute at 16 kHz, then the noise repeats


@dataclass(frozen=True)
class Effects:
    """What is done to waveforms, in this order.

    Attributes:
        trim_db: Cut off what lies before the first and behind the last window of 25 ms whose power is at most so many
            dB below that of the loudest one, such as 40; 0.1 s on both sides stay.
        normalize_peak: Bring the loudest sample to 0.999, as Step-Audio prepares every input.
        gain_db: Range of a random gain.
        noise_db: Range of the level of white noise, in dB of full scale (its root mean square), such as (-90, -46).
        seed: Of gain and noise.
    """

    trim_db: float | None = None
    normalize_peak: bool = False
    gain_db: tuple[float, float] | None = None
    noise_db: tuple[float, float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for empty ranges and a threshold above the loudest."""
        if self.trim_db is not None and self.trim_db <= 0:
            raise ValueError(f"trim_db {self.trim_db}: how far below the loudest silence begins, such as 40")
        for name in ("gain_db", "noise_db"):
            low, high = getattr(self, name) or (0, 0)
            if low > high:
                raise ValueError(f"{name} {low} … {high}: the range must not fall")

    def min_samples(self, sample_rate_hz: int) -> int:
        """Shortest waveform that can be treated: one window, if silence is looked for."""
        return 1 if self.trim_db is None else round(TRIM_WINDOW_S * sample_rate_hz)


class Draw(NamedTuple):
    """What was drawn for one recording.

    Attributes:
        gain: Factor.
        noise: Factor of noise of unit power.
        noise_start: Where in the bank of noise to begin.
    """

    gain: float
    noise: float
    noise_start: int


def draw(effects: Effects, epoch: int, index: int) -> Draw:
    """A pure function of its arguments, so that neither workers nor resuming nor the loader change it."""
    if effects.gain_db is None and effects.noise_db is None:
        return Draw(1.0, 0.0, 0)
    random = np.random.default_rng((effects.seed, epoch, index))
    gain = 10 ** (random.uniform(*effects.gain_db) / 20) if effects.gain_db else 1.0
    noise = 10 ** (random.uniform(*effects.noise_db) / 20) if effects.noise_db else 0.0
    return Draw(gain, noise, int(random.integers(_BANK_SIZE)))


def white_noise(drawn: Draw, num_samples: int, seed: int) -> Tensor:
    """[N] noise of the drawn level. Cut from one bank: drawing every sample cost as much as a mel spectrogram."""
    bank = _bank(seed)
    first = bank[drawn.noise_start : drawn.noise_start + num_samples]
    parts = [first]
    while (missing := num_samples - sum(map(len, parts))) > 0:
        parts.append(bank[:missing])
    return (torch.cat(parts) if len(parts) > 1 else first) * drawn.noise


@lru_cache(1)
def _bank(seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng((seed, 0x4E01)).standard_normal(_BANK_SIZE, dtype=np.float32))


def apply_effects(waveform: Tensor, effects: Effects, drawn: Draw, sample_rate_hz: int) -> Tensor:
    """A waveform [N] with all effects; [N'], N' ≤ N."""
    if effects.trim_db is not None:
        waveform = trim(waveform, effects.trim_db, sample_rate_hz)
    if effects.normalize_peak:
        waveform = normalize_peak(waveform)
    if effects.gain_db:
        waveform = waveform * drawn.gain
    if effects.noise_db:
        waveform = waveform + white_noise(drawn, len(waveform), effects.seed)
    return waveform


def trim(waveform: Tensor, trim_db: float, sample_rate_hz: int) -> Tensor:
    """Cuts the silence off both ends of [N], at whole steps of 10 ms; see `Effects`. All silent, it stays whole.

    Whole steps, because two programs that add up the power in another order would otherwise disagree by a sample now
    and then. N is at least one window.
    """
    window, step, margin = (round(s * sample_rate_hz) for s in (TRIM_WINDOW_S, TRIM_STEP_S, TRIM_MARGIN_S))
    energy = waveform.double().square().cumsum(0)
    power = energy[window - 1 :].clone()
    power[1:] -= energy[:-window]
    loud = torch.nonzero(power >= power.max() * 10 ** (-trim_db / 10))
    first, last = int(loud[0]), int(loud[-1]) + window
    start, stop = first // step * step - margin, -(-last // step) * step + margin
    return waveform[max(0, start) : stop]
