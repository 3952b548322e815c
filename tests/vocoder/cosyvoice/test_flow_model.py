"""The full-size flow model: released names and sizes, padding, chunks, guidance, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megatron_aqaa.ops import code_pair_embedding
from megatron_aqaa.vocoder import flow
from megatron_aqaa.vocoder.cosyvoice import token_ids
from megatron_aqaa.vocoder.cosyvoice.flow_loss import FlowBatch, draw_chunk, flow_losses, masked_mean
from megatron_aqaa.vocoder.cosyvoice.flow_model import FlowConfig, FlowModel, TokenBatch, even_chunks
from megatron_aqaa.vocoder.cosyvoice.frame_mask import FrameMask
from tests.vocoder.cosyvoice.tiny_flow import CONFIG, MEL, recordings, streams, tiny_flow


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def transformer_block(channels: int, inner: int) -> int:
    norms, attention = 2 * 2 * channels, 3 * channels * inner + linear(inner, channels)
    return norms + attention + linear(channels, 4 * channels) + linear(4 * channels, channels)


def stage(inputs: int, channels: int, time: int) -> int:
    """A ResNet block and four transformer blocks with eight heads of 64."""
    blocks = linear(3 * inputs, channels) + linear(3 * channels, channels) + 2 * 2 * channels
    return blocks + linear(time, channels) + linear(inputs, channels) + 4 * transformer_block(channels, 512)


def estimator_size(inputs: int) -> int:
    time = linear(inputs, 1024) + linear(1024, 1024)
    down = stage(inputs, 256, 1024) + stage(256, 256, 1024) + 2 * linear(3 * 256, 256)
    middle = 12 * stage(256, 256, 1024)
    up = 2 * stage(512, 256, 1024) + linear(4 * 256, 256) + linear(3 * 256, 256)
    end = linear(3 * 256, 256) + 2 * 256 + linear(256, 80)
    return time + down + middle + up + end


def encoder_size() -> int:
    attention = 4 * linear(512, 512) + 512 * 512 + 2 * 512
    block = attention + linear(512, 2048) + linear(2048, 512) + 2 * 2 * 512
    return linear(512, 512) + 2 * 512 + 6 * block + 2 * 512


def flow_size(vocab: int, inputs: int, speaker: int) -> int:
    regulator = 4 * (linear(3 * 80, 80) + 2 * 80) + linear(80, 80)
    rest = vocab * 512 + linear(512, 80) + regulator + (linear(speaker, 80) if speaker else 0)
    return rest + encoder_size() + estimator_size(inputs)


@pytest.mark.parametrize(
    ("config", "size", "exactly"),
    [
        (FlowConfig(), flow_size(5120, 240, 0), 105_219_760),
        (FlowConfig(vocab_size=4096, speaker_size=192), flow_size(4096, 320, 192), 104_874_752),  # as CosyVoice-300M
    ],
)
def test_full_size_has_the_published_number_of_parameters(config: FlowConfig, size: int, exactly: int) -> None:
    """105 M, worked out layer by layer above."""
    with torch.device("meta"):
        model = FlowModel(config)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == size == exactly


def test_names_and_shapes_are_the_released_ones() -> None:
    """One of each kind, read off FunAudioLLM/CosyVoice and shivammehta25/Matcha-TTS."""
    with torch.device("meta"):
        found = {k: tuple(v.shape) for k, v in FlowModel(FlowConfig(speaker_size=192)).state_dict().items()}
    estimator = "decoder.estimator"
    expected = {
        "input_embedding.weight": (5120, 512),
        "spk_embed_affine_layer.weight": (80, 192),
        "encoder.embed.out.0.weight": (512, 512),
        "encoder.embed.out.1.bias": (512,),
        "encoder.encoders.5.self_attn.linear_pos.weight": (512, 512),
        "encoder.encoders.5.self_attn.pos_bias_u": (8, 64),
        "encoder.encoders.0.self_attn.linear_out.bias": (512,),
        "encoder.encoders.0.feed_forward.w_1.weight": (2048, 512),
        "encoder.encoders.0.norm_mha.weight": (512,),
        "encoder.encoders.0.norm_ff.weight": (512,),
        "encoder.after_norm.weight": (512,),
        "encoder_proj.weight": (80, 512),
        "length_regulator.model.9.weight": (80, 80, 3),
        "length_regulator.model.10.weight": (80,),
        "length_regulator.model.12.weight": (80, 80, 1),
        f"{estimator}.time_mlp.linear_1.weight": (1024, 320),
        f"{estimator}.time_mlp.linear_2.weight": (1024, 1024),
        f"{estimator}.down_blocks.0.0.block1.block.0.weight": (256, 320, 3),
        f"{estimator}.down_blocks.0.0.block2.block.1.weight": (256,),
        f"{estimator}.down_blocks.0.0.mlp.1.weight": (256, 1024),
        f"{estimator}.down_blocks.0.0.res_conv.weight": (256, 320, 1),
        f"{estimator}.down_blocks.0.1.3.attn1.to_q.weight": (512, 256),
        f"{estimator}.down_blocks.0.1.3.attn1.to_out.0.weight": (256, 512),
        f"{estimator}.down_blocks.0.2.conv.weight": (256, 256, 3),
        f"{estimator}.down_blocks.1.2.weight": (256, 256, 3),
        f"{estimator}.mid_blocks.11.1.0.ff.net.0.proj.weight": (1024, 256),
        f"{estimator}.mid_blocks.11.1.0.ff.net.2.weight": (256, 1024),
        f"{estimator}.mid_blocks.11.1.0.norm3.weight": (256,),
        f"{estimator}.up_blocks.0.0.block1.block.0.weight": (256, 512, 3),
        f"{estimator}.up_blocks.0.2.conv.weight": (256, 256, 4),
        f"{estimator}.up_blocks.1.2.weight": (256, 256, 3),
        f"{estimator}.final_block.block.0.weight": (256, 256, 3),
        f"{estimator}.final_proj.weight": (80, 256, 1),
    }
    assert expected.items() <= found.items()
    assert len(found) == 1185
    assert "decoder.estimator.down_blocks.0.1.0.attn1.to_q.bias" not in found


def test_frames_of_tokens() -> None:
    assert FlowConfig().frames_per_token == pytest.approx(22050 / 256 * 0.024)
    assert FlowConfig().num_frames(5) == 10  # 120 ms are 10.34 hops
    assert FlowConfig().num_frames(500) == 1032  # 1033.6, of which the field halves 1032


def mel_of(model: FlowModel, batch: TokenBatch, chunk: int = 0) -> torch.Tensor:
    """Velocity for fixed noise at a fixed time."""
    masks = model.masks(batch, even_chunks(batch.tokens.shape[1], chunk))
    noise = torch.randn(len(batch.tokens), 200, MEL.num_mels, generator=torch.Generator().manual_seed(5))
    time = torch.full((len(batch.tokens),), 0.4)
    with torch.no_grad():
        condition = model.condition(batch, masks)
        return model.decoder.velocity(noise[:, : masks[1].size], time, condition, masks[1])


@pytest.mark.parametrize("chunk", [0, 5, 10])
def test_padding_never_changes_valid_frames(chunk: int) -> None:
    model, sizes = tiny_flow(), (10, 20, 15)
    batch = streams(3, 20, list(sizes))
    together = mel_of(model, batch, chunk)
    rubbish = batch._replace(tokens=torch.where(torch.arange(20) < batch.lengths[:, None], batch.tokens, 7))
    assert torch.equal(together, mel_of(model, rubbish, chunk))
    for row, (size, frames) in enumerate(zip(sizes, (20, 40, 30), strict=True)):
        alone = mel_of(model, TokenBatch(batch.tokens[:, :size]), chunk)[row]
        torch.testing.assert_close(together[row, :frames], alone, rtol=0, atol=2e-5)
        assert not together[row, frames:].any()


def test_a_chunk_as_long_as_the_whole_is_the_whole() -> None:
    model, batch = tiny_flow(), streams(2, 30)
    assert torch.equal(mel_of(model, batch, 30), mel_of(model, batch))
    # the same by the chunked ways of each layer: the first chunk of a longer stream knows nothing of the rest
    first = mel_of(model, streams(2, 35), 30)[:, :62]
    torch.testing.assert_close(first, mel_of(model, TokenBatch(streams(2, 35).tokens[:, :30])), rtol=0, atol=2e-5)


@pytest.mark.parametrize("chunk", [5, 10])
def test_a_chunk_does_not_see_the_next(chunk: int) -> None:
    model, batch = tiny_flow(), streams(1, 40)
    changed = batch._replace(tokens=batch.tokens.clone())
    changed.tokens[:, 20:] = (changed.tokens[:, 20:] + 1) % 50
    before, after = mel_of(model, batch, chunk), mel_of(model, changed, chunk)
    assert torch.equal(before[:, :40], after[:, :40])  # token 20 begins in frame 41, its chunk with frame 40
    assert not torch.equal(before[:, 40:], after[:, 40:])
    assert not torch.equal(mel_of(model, batch)[:, :40], mel_of(model, changed)[:, :40])


def test_guidance_zero_is_the_conditional_model_and_guidance_the_published_mixture() -> None:
    model, batch = tiny_flow(), streams(2, 10)
    masks = model.masks(batch)
    y, time = torch.randn(2, 20, 16), torch.tensor([0.3, 0.3])
    with torch.no_grad():
        condition = model.condition(batch, masks)
        told = model.decoder.velocity(y, time, condition, masks[1])
        untold = model.decoder.velocity(y, time, condition.times(torch.zeros(2)), masks[1])
        assert torch.equal(model.decoder.field(condition, masks[1], 0.0)(y, time), told)
        guided = model.decoder.field(condition, masks[1], 0.7)(y, time)
    torch.testing.assert_close(guided, 1.7 * told - 0.7 * untold, rtol=0, atol=1e-5)


def test_sampling_follows_the_exact_path_of_a_field_that_knows_the_end() -> None:
    model, batch = tiny_flow(), streams(1, 10)
    noise, data = torch.randn(1, 20, 16), torch.randn(1, 20, 16)

    def exact(y: torch.Tensor, time: torch.Tensor, condition: object, mask: object) -> torch.Tensor:
        return (data + flow.SIGMA_MIN * noise - y) / (1 - time)[:, None, None]

    model.decoder.velocity = exact  # type: ignore[method-assign]
    for steps in (1, 4):
        drawn = model.sample(batch, noise, steps, guidance=0.0)
        torch.testing.assert_close(drawn, data + flow.SIGMA_MIN * noise, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_sampling_against_an_adaptive_solver() -> None:
    """On the guided field of a network, in double precision: the error falls with the steps, and ends below 1 %."""
    solver = pytest.importorskip("torchdiffeq")
    model, batch = tiny_flow().double(), streams(1, 10)
    noise = torch.randn(1, 20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    masks = model.masks(batch)
    with torch.no_grad():
        field = model.decoder.field(model.condition(batch, masks), masks[1], flow.GUIDANCE)
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        tolerance = {"method": "dopri5", "rtol": 1e-6, "atol": 1e-6}
        exact = solver.odeint(lambda t, y: field(y, t.expand(1)), noise, ends, **tolerance)[-1]
        errors = [float((model.sample(batch, noise, n) - exact).norm() / exact.norm()) for n in (16, 64, 256)]
    assert errors[0] > 2.5 * errors[1] > 6.25 * errors[2]
    assert errors[2] < 0.01


def test_the_prompt_and_the_speaker_are_heard() -> None:
    model, batch = tiny_flow(replace(CONFIG, speaker_size=12)), streams(1, 10)
    noise, plain = torch.randn(1, 20, 16), torch.zeros(0)
    plain = model.sample(batch, noise, 2)
    assert not torch.allclose(plain, model.sample(batch, noise, 2, speaker=torch.ones(1, 12)))
    assert not torch.allclose(plain, model.sample(batch, noise, 2, prompt=torch.ones(1, 20, 16)))
    deaf = tiny_flow(replace(CONFIG, voice_prompt=False))
    with pytest.raises(ValueError, match="knows no speakers"):
        deaf.sample(batch, noise, 2, speaker=torch.ones(1, 12))
    with pytest.raises(ValueError, match="takes no voice prompt"):
        deaf.sample(batch, noise, 2, prompt=torch.ones(1, 20, 16))


def test_an_id_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match="token 50: flat ids are 0 … 49"):
        tiny_flow().sample(TokenBatch(torch.tensor([[3, 50]])), torch.zeros(1, 4, 16))


COLUMNS = replace(
    CONFIG,
    linguistic_size=20,
    token_form="columns",
    mel=replace(MEL, sample_rate_hz=24000, n_fft=1920, win_length=1920, hop_length=480),
    chunk_tokens=(6,),
)
"""The later released form: 25 positions and 50 frames a second."""


def test_columns_have_two_frames_a_position_and_an_absent_code_adds_nothing() -> None:
    assert COLUMNS.frames_per_token == 2
    model, codes = tiny_flow(COLUMNS), torch.tensor([[[3, 7], [19, 29], [-1, 4]]])
    tables = model.input_embedding
    embedded = tables(codes)[0]
    torch.testing.assert_close(embedded[1], tables.linguistic.weight[19] + tables.semantic.weight[29])
    torch.testing.assert_close(embedded[2], tables.semantic.weight[4])
    drawn = model.sample(TokenBatch(codes), torch.randn(1, 6, 16), 2)
    assert drawn.shape == (1, 6, 16)


def test_columns_go_through_the_fused_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def noted(codes: torch.Tensor, *tables: torch.Tensor) -> torch.Tensor:
        calls.append(codes.shape)
        return code_pair_embedding(codes, *tables)

    monkeypatch.setattr(token_ids, "code_pair_embedding", noted)
    tiny_flow(COLUMNS).sample(TokenBatch(torch.tensor([[[3, 7], [19, 29], [-1, 4]]])), torch.zeros(1, 6, 16), 1)
    assert calls == [(1, 3, 2)]


def test_columns_learn_and_keep_to_their_chunks() -> None:
    model = tiny_flow(COLUMNS)
    codes = torch.stack((torch.randint(20, (2, 12)), torch.randint(30, (2, 12))), dim=-1)
    batch = FlowBatch(TokenBatch(codes, torch.tensor([12, 9])), torch.randn(2, 24, 16))
    flow_losses(model, batch)["loss"].backward()
    assert model.input_embedding.semantic.weight.grad.abs().sum() > 0
    changed = codes.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 20
    before, after = (mel_of(model, TokenBatch(tokens), 6) for tokens in (codes, changed))
    assert torch.equal(before[:, :12], after[:, :12]) and not torch.equal(before, after)


def test_columns_of_the_wrong_shape_or_out_of_range_are_named() -> None:
    for tokens, message in (
        ([[3, 7]], r"tokens of shape \[1, 2\]; columns: \[B, S, 2\]"),
        ([[[20, 7]]], "token 20: linguistic codes are -1 … 19"),
        ([[[3, 30]]], "token 30: semantic codes are -1 … 29"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_flow(COLUMNS).sample(TokenBatch(torch.tensor(tokens)), torch.zeros(1, 2, 16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"chunk_tokens": (7,)}, "whole groups"), ({"condition_dropout": 1.5}, "must be a share")],
)
def test_wrong_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **settings)


def test_both_masks_are_drawn() -> None:
    torch.manual_seed(0)
    drawn = [draw_chunk(FlowConfig()) for _ in range(400)]
    assert set(drawn) == {0, 25, 40, 80}
    assert 160 < drawn.count(0) < 240
    assert draw_chunk(replace(FlowConfig(), chunked_ratio=0.0)) == 0


def test_training_runs_under_both_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, seen = tiny_flow(replace(CONFIG, chunk_tokens=(5, 10))), recordings(1, 20), set()
    masks = FlowModel.masks

    def noted(self: FlowModel, batch: TokenBatch, edges: tuple[int, ...] = ()) -> tuple[FrameMask, FrameMask]:
        seen.add(edges)
        return masks(self, batch, edges)

    monkeypatch.setattr(FlowModel, "masks", noted)
    for seed in range(20):
        torch.manual_seed(seed)
        flow_losses(model, batch)
    assert seen == {(), (5, 10, 15), (10,)}


def test_loss_ignores_the_padding() -> None:
    values = torch.tensor([[[1.0], [3.0]], [[5.0], [100.0]]])
    assert masked_mean(values, FrameMask(2, torch.tensor([2, 1]))) == 3  # (1 + 3 + 5) / 3, by hand
    model, batch = tiny_flow(), recordings(2, 20)
    ragged = batch._replace(tokens=batch.tokens._replace(lengths=torch.tensor([20, 10])))
    spoiled = ragged.mel.clone()
    spoiled[1, 20:] = 1e4
    losses = []
    for mel in (ragged.mel, spoiled):
        torch.manual_seed(3)
        losses.append(flow_losses(model, ragged._replace(mel=mel))["loss"])
    assert torch.equal(*losses)


def test_gradient_reaches_every_parameter() -> None:
    model = tiny_flow(replace(CONFIG, speaker_size=12, condition_dropout=0.0)).train()
    batch = recordings(4, 20)._replace(speaker=torch.randn(4, 12))
    flow_losses(model, batch)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # a constant added to every key is the same for every query: the softmax does not see it
        assert parameter.grad.abs().sum() > 0 or name.endswith("linear_k.bias"), name


@pytest.mark.slow
def test_one_batch_is_overfitted() -> None:
    """Adam 3e-4, torch's own start values, 200 steps under both masks: to .6 of the first losses (.51 measured)."""
    torch.manual_seed(0)
    small = replace(CONFIG, estimator=replace(CONFIG.estimator, channels=(32, 32), num_mid_blocks=1))
    model, batch = FlowModel(small), recordings(4, 20)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    history = []
    for _ in range(200):
        loss = flow_losses(model, batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-20:]) < 0.6 * sum(history[:20])
