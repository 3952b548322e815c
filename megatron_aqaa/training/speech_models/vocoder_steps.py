"""Losses of the vocoder's two networks, for `training.speech_models.fit`, and the weights that are told by the data."""

from __future__ import annotations

import torch
from torch.nn import functional

from megatron_aqaa.audio.mel import MelSpectrogram
from megatron_aqaa.training.speech_models.voice_corpus import VoiceBatch
from megatron_aqaa.vocoder import flow
from megatron_aqaa.vocoder.acoustic import AcousticModel, AcousticPrediction
from megatron_aqaa.vocoder.frames import VoiceFrames
from megatron_aqaa.vocoder.generator import Generator
from megatron_aqaa.vocoder.losses import multi_resolution_stft_loss

Losses = dict[str, torch.Tensor]

MEL_WEIGHT = 3.0
# The acoustic model's mel is not the natural one; a little noise keeps the generator from leaning on its last digit.
MEL_NOISE = 0.02


def generator_losses(model: Generator, batch: VoiceBatch) -> Losses:
    """Mel L1 and multi-resolution STFT, between what is spoken from natural frames and the recording.

    No discriminator: at a budget of minutes it made the sketch's generator worse.
    """
    mel = batch.frames.mel + MEL_NOISE * torch.randn_like(batch.frames.mel)
    generated = model(batch.frames._replace(mel=mel))
    with torch.autocast(generated.device.type, enabled=False):  # spectra in bf16 are noise
        mel_loss = mel_l1(model.log_mel, generated, batch.waveform)
        stft_loss = multi_resolution_stft_loss(generated, batch.waveform)
    return {"loss": MEL_WEIGHT * mel_loss + stft_loss, "mel": mel_loss, "stft": stft_loss}


def mel_l1(log_mel: MelSpectrogram, generated: torch.Tensor, natural: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the log-mel spectra of two waveforms [B, N]."""
    with torch.no_grad():
        target = log_mel(natural)
    return (log_mel(generated) - target).abs().mean()


def acoustic_losses(model: AcousticModel, batch: VoiceBatch) -> Losses:
    """L1 of mean mel and pitch, cross-entropy of voicing, and flow matching.

    A flow or a regression that stands alone (`AcousticConfig.form`) leaves out the other's part.
    """
    assert batch.codes is not None, "the acoustic model is trained on tokens"
    prediction = model.predict(batch.codes)
    target = model.normalize(batch.frames.mel)
    form, none = model.config.form, target.new_zeros(())
    mel_loss = none if form == "flow" else (prediction.mel - target).abs().mean()
    pitch_loss, voicing_loss = _pitch_losses(prediction, batch.frames)
    flow_loss = none if form == "regression" else flow_matching_loss(model, target, prediction.condition)
    total = mel_loss + pitch_loss + 0.2 * voicing_loss + flow_loss
    return {"loss": total, "mel": mel_loss, "pitch": pitch_loss, "voicing": voicing_loss, "flow": flow_loss}


def _pitch_losses(prediction: AcousticPrediction, frames: VoiceFrames) -> tuple[torch.Tensor, torch.Tensor]:
    distance = (prediction.octaves - frames.octaves).abs() * frames.voiced
    voicing = functional.binary_cross_entropy_with_logits(prediction.voiced_logit, frames.voiced)
    return distance.sum() / frames.voiced.sum().clamp(min=1), voicing


def flow_matching_loss(model: AcousticModel, data: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the velocity at a random time, the condition dropped now and then.

    Args:
        model: holds the velocity network.
        data: [B, F, M], what noise is to become.
        condition: [B, F, H].
    """
    batch = len(data)
    time = flow.cosine_schedule(torch.rand(batch, device=data.device))
    noise = torch.randn_like(data)
    keep = torch.rand(batch, 1, 1, device=data.device) >= model.config.condition_dropout
    velocity = model.velocity_net(flow.path_point(noise, data, time), time, condition * keep)
    return (velocity - flow.path_velocity(noise, data)).square().mean()
