"""What judges and generator try to bring down; `natural` and `generated` are judgements of the same judges.

Sums over judges, means over places, as published (HiFi-GAN, arXiv 2010.05646 §2.4; hinge: arXiv 1705.02894; truncated
pointwise relativistic: arXiv 2309.09493 §3.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from megatron_aqaa.audio.mel import MelSpectrogram
from megatron_aqaa.vocoder.discriminators import Judgement

Kind = Literal["least_squares", "hinge"]


@dataclass(frozen=True)
class AdversarialWeights:
    """How much each part of the losses counts; the defaults are the published ones.

    Attributes:
        kind: least squares (natural to 1, generated to 0) or hinge (beyond 1 and −1).
        feature: of feature matching (HiFi-GAN: 2).
        mel: of the log-mel L1 (HiFi-GAN: 45).
        relativistic: of the truncated pointwise relativistic loss (HiFTNet: 1).
        truncation: its τ.
        pitch: of the L1 of F0 in Hz (FunAudioLLM/CosyVoice: 1).
    """

    kind: Kind = "least_squares"
    feature: float = 2.0
    mel: float = 45.0
    relativistic: float = 1.0
    truncation: float = 0.04
    pitch: float = 1.0


def judges_loss(natural: Sequence[Judgement], generated: Sequence[Judgement], kind: Kind) -> Tensor:
    """Of the judges: they should tell the two apart."""
    if kind == "least_squares":
        terms = [(1 - n).square().mean() + g.square().mean() for n, g in _scores(natural, generated)]
    else:
        terms = [functional.relu(1 - n).mean() + functional.relu(1 + g).mean() for n, g in _scores(natural, generated)]
    return torch.stack(terms).sum()


def deception_loss(generated: Sequence[Judgement], kind: Kind) -> Tensor:
    """Of the generator: its work should be taken for natural."""
    scores = [judgement.scores.float() for judgement in generated]
    terms = [(1 - g).square().mean() if kind == "least_squares" else -g.mean() for g in scores]
    return torch.stack(terms).sum()


def feature_matching_loss(natural: Sequence[Judgement], generated: Sequence[Judgement]) -> Tensor:
    """Mean absolute difference of each layer's output, summed over layers and judges; natural ones are given."""
    terms = [
        (n.detach().float() - g.float()).abs().mean()
        for ours, theirs in zip(natural, generated, strict=True)
        for n, g in zip(ours.features, theirs.features, strict=True)
    ]
    return torch.stack(terms).sum()


def relativistic_loss(better: Sequence[Judgement], worse: Sequence[Judgement], truncation: float) -> Tensor:
    """Lifts the scores that should be higher over the median distance, place by place; at most `truncation` a judge.

    Args:
        better: whose scores should be higher: natural for the judges, generated for the generator.
        worse: the others.
        truncation: τ, beyond which a judge has no say.
    """
    terms = []
    for high, low in _scores(better, worse):
        beyond = high - low - (high - low).median()
        below = (beyond < 0).float()
        distance = (beyond.square() * below).sum() / below.sum().clamp(min=1)  # all alike: none is below
        terms.append(truncation - functional.relu(truncation - distance))
    return torch.stack(terms).sum()


def mel_loss(log_mels: Iterable[MelSpectrogram], generated: Tensor, natural: Tensor) -> Tensor:
    """Mean absolute difference of log-mel spectra of waveforms [B, N], summed over `log_mels`; in fp32."""
    with torch.autocast(generated.device.type, enabled=False):
        terms = [(log_mel(generated.float()) - log_mel(natural.float())).abs().mean() for log_mel in log_mels]
    return torch.stack(terms).sum()


def _scores(left: Sequence[Judgement], right: Sequence[Judgement]) -> list[tuple[Tensor, Tensor]]:
    return [(a.scores.float(), b.scores.float()) for a, b in zip(left, right, strict=True)]
