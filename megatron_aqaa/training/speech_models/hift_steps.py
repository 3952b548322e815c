"""What the waveform generator and its judges are trained on, for `training.speech_models.adversarial_fit`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_aqaa.audio.mel import MelSpectrogram
from megatron_aqaa.training.speech_models.adversarial_fit import Adversary
from megatron_aqaa.training.speech_models.speech_batches import SoundBatch
from megatron_aqaa.vocoder.adversarial_losses import (
    AdversarialWeights,
    deception_loss,
    feature_matching_loss,
    judges_loss,
    mel_loss,
    relativistic_loss,
)
from megatron_aqaa.vocoder.cosyvoice.hift import HiftGenerator, Spoken
from megatron_aqaa.vocoder.discriminators import Discriminators, Judgement

Losses = dict[str, Tensor]


def hift_adversary(weights: AdversarialWeights, log_mels: Sequence[MelSpectrogram]) -> Adversary:
    """The turns of a step.

    Args:
        weights: of the parts of the losses.
        log_mels: spectrograms that generated and natural sound are compared by, on this process's device.
    """

    def generate(generator: HiftGenerator, batch: SoundBatch) -> Spoken:
        return generator(batch.mel)

    def judge(judges: Discriminators, batch: SoundBatch, spoken: Spoken) -> Losses:
        natural, generated = judges(batch.waveform), judges(spoken.waveform)
        judging = judges_loss(natural, generated, weights.kind)
        relativistic = relativistic_loss(natural, generated, weights.truncation)
        loss = judging + weights.relativistic * relativistic
        return {"loss": loss, "judging": judging, "spread": _spread(natural, generated)}

    def convince(judges: Discriminators, batch: SoundBatch, spoken: Spoken) -> Losses:
        with torch.no_grad():
            natural = judges(batch.waveform)
        generated = judges(spoken.waveform)
        losses = {
            "deception": deception_loss(generated, weights.kind),
            "feature": feature_matching_loss(natural, generated),
            "mel": mel_loss(log_mels, spoken.waveform, batch.waveform),
            "relativistic": relativistic_loss(generated, natural, weights.truncation),
            "pitch": (spoken.f0_hz - batch.f0_hz).abs().mean(),
        }
        total = losses["deception"] + sum(
            getattr(weights, name) * losses[name] for name in ("feature", "mel", "relativistic", "pitch")
        )
        return {"loss": total, **losses}

    return Adversary(generate, judge, convince)


@torch.no_grad()
def _spread(natural: Sequence[Judgement], generated: Sequence[Judgement]) -> Tensor:
    """Mean over judges of the standard deviation of their scores."""
    deviations = [torch.cat((n.scores, g.scores), dim=1).float().std() for n, g in zip(natural, generated, strict=True)]
    return torch.stack(deviations).mean()
