"""The acoustic model: time alignment, sampling, guidance, and that it can learn one batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megatron_aqaa.training.speech_models.vocoder_steps import acoustic_losses, flow_matching_loss
from megatron_aqaa.training.speech_models.voice_corpus import VoiceBatch
from megatron_aqaa.vocoder import flow
from megatron_aqaa.vocoder.acoustic import AcousticModel, CodeEmbedding, SamplingConfig
from megatron_aqaa.vocoder.frames import VoiceFrames
from megatron_aqaa.vocoder.layers import AttentionBlock
from tests.vocoder.tiny_vocoder import ACOUSTIC, random_codes, tiny_acoustic


def changed_frames(embedding: CodeEmbedding, field: str, group: int, place: int) -> list[int]:
    """Frames whose embedding depends on one code."""
    codes = random_codes(1, 3)
    other = getattr(codes, field).clone()
    other[0, group, place] = (other[0, group, place] + 1) % 1024
    difference = embedding(codes) - embedding(codes._replace(**{field: other}))
    return difference[0].abs().sum(-1).nonzero()[:, 0].tolist()


def test_codes_stand_at_their_time():
    """A linguistic code lasts 60 ms, 3 frames; a semantic one 40 ms, 2 frames; a group 6."""
    embedding = CodeEmbedding(ACOUSTIC)
    assert changed_frames(embedding, "linguistic", 0, 0) == [0, 1, 2]
    assert changed_frames(embedding, "linguistic", 1, 1) == [9, 10, 11]
    assert changed_frames(embedding, "semantic", 0, 1) == [2, 3]
    assert changed_frames(embedding, "semantic", 2, 2) == [16, 17]


def test_embeddings_start_from_vectors():
    embedding = CodeEmbedding(ACOUSTIC)
    linguistic, semantic = torch.randn(1024, 7), torch.randn(4096, 3)
    linguistic[5] = linguistic[4] + 0.01
    embedding.start_from(linguistic, semantic)
    distance = torch.cdist(embedding.linguistic.weight, embedding.linguistic.weight)
    assert distance[4, 5] < 0.3 * distance[4].median()
    with pytest.raises(ValueError, match="1000 code vectors for a codebook of 1024"):
        embedding.start_from(linguistic[:1000], semantic)


def test_sample_has_six_frames_a_group_and_is_a_function_of_its_noise():
    model, codes = tiny_acoustic(), random_codes(2, 4)
    noise = torch.randn(2, 24, 80)
    first, second = (model.sample(codes, noise, SamplingConfig()) for _ in range(2))
    assert first.mel.shape == (2, 24, 80) and first.octaves.shape == first.voiced.shape == (2, 24)
    assert torch.equal(first.mel, second.mel)
    assert not torch.allclose(first.mel, model.sample(codes, -noise, SamplingConfig()).mel, atol=1e-3)
    assert set(first.voiced.unique().tolist()) <= {0.0, 1.0}


def test_no_steps_give_the_mean():
    model, codes = tiny_acoustic(), random_codes(1, 3)
    drawn = model.sample(codes, torch.randn(1, 18, 80), SamplingConfig(steps=0))
    torch.testing.assert_close(model.normalize(drawn.mel), model.predict(codes).mel.detach())


def test_guidance_zero_is_the_conditional_model():
    model, codes, noise = tiny_acoustic(), random_codes(1, 3), torch.randn(1, 18, 80)
    with torch.inference_mode():
        prediction = model.predict(codes)
        mel = flow.euler(lambda y, t: model.velocity_net(y, t, prediction.condition), noise, 4)
    by_hand = model.mel_mean + model.mel_deviation * mel
    sampled = model.sample(codes, noise, SamplingConfig(steps=4, guidance=0.0, temperature=1.0)).mel
    torch.testing.assert_close(sampled, by_hand)
    guided = model.sample(codes, noise, SamplingConfig(steps=4, guidance=0.7, temperature=1.0)).mel
    assert not torch.allclose(sampled, guided, atol=1e-3)


def test_bf16_stays_near_fp32_and_leaves_the_regression_alone():
    model, codes, noise = tiny_acoustic(), random_codes(1, 6), torch.randn(1, 36, 80)
    exact, rounded = (model.sample(codes, noise, SamplingConfig(bf16=bf16)) for bf16 in (False, True))
    assert rounded.mel.dtype == torch.float32
    assert torch.equal(rounded.octaves, exact.octaves) and torch.equal(rounded.voiced, exact.voiced)
    assert 0 < (rounded.mel - exact.mel).abs().mean() < 0.02 * exact.mel.std()


def test_double_precision_stays():
    model, codes = tiny_acoustic().double(), random_codes(1, 2)
    drawn = model.sample(codes, torch.randn(1, 12, 80, dtype=torch.float64), SamplingConfig())
    assert all(field.dtype == torch.float64 for field in drawn)


def test_dropped_condition_reaches_no_code():
    """With dropout 1 the flow's loss is that of the unconditional model: no gradient flows to the codes."""
    model = AcousticModel(replace(ACOUSTIC, condition_dropout=1.0))
    torch.nn.init.normal_(model.velocity_net.output.weight)
    condition = torch.randn(2, 6, 16, requires_grad=True)
    flow_matching_loss(model, torch.randn(2, 6, 80), condition).backward()
    assert condition.grad.abs().sum() == 0


def test_overfits_one_batch():
    """The flow learns to draw one spectrum: its loss falls from above 1 to below .16, and it draws it."""
    torch.manual_seed(0)
    model = AcousticModel(replace(ACOUSTIC, num_mels=8, hidden_size=32, condition_dropout=0.0))
    codes, data = random_codes(1, 2), torch.randn(1, 12, 8)
    condition = model.predict(codes).condition.detach()
    optimizer = torch.optim.Adam(model.velocity_net.parameters(), lr=3e-3)
    losses = []
    for _ in range(250):
        loss = flow_matching_loss(model, data.expand(8, -1, -1), condition.expand(8, -1, -1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[:20]) > 20 and sum(losses[-20:]) < 0.16 * 20
    with torch.inference_mode():
        drawn = flow.euler(lambda y, t: model.velocity_net(y, t, condition), torch.randn(1, 12, 8), 10)
    assert (drawn - data).square().mean() < 0.1 * data.square().mean()


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="hidden size 10 is not a multiple of the 4 attention heads"):
        AttentionBlock(10, 4)


def test_a_flow_alone_starts_from_noise_and_a_regression_alone_ignores_it():
    codes, noise = random_codes(1, 3), torch.randn(1, 18, 80)
    flow_alone = AcousticModel(replace(ACOUSTIC, form="flow"))
    regression = AcousticModel(replace(ACOUSTIC, form="regression"))
    # an untrained field is that of Gaussian data: unit noise stays unit noise, and no mean is added
    drawn = flow_alone.normalize(flow_alone.sample(codes, noise, SamplingConfig(steps=8, temperature=1.0)).mel)
    assert 0.8 < drawn.std() < 1.2
    plain = [regression.sample(codes, other, SamplingConfig()).mel for other in (noise, -noise)]
    assert torch.equal(*plain)


@pytest.mark.parametrize("form", ["both", "flow", "regression"])
def test_each_form_trains_its_own_parts(form):
    model = AcousticModel(replace(ACOUSTIC, form=form))
    codes, frames = random_codes(2, 3), VoiceFrames(torch.randn(2, 18, 80), torch.zeros(2, 18), torch.ones(2, 18))
    losses = acoustic_losses(model, VoiceBatch(torch.zeros(2, 1), frames, codes))
    losses["loss"].backward()
    flow_learns = model.velocity_net.output.weight.grad is not None
    mean_learns = model.regression.weight.grad[:80].any().item()
    assert (flow_learns, mean_learns) == (form != "regression", form != "flow")
    assert (losses["flow"] > 0, losses["mel"] > 0) == (form != "regression", form != "flow")
