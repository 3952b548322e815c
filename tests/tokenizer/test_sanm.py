"""The SANM encoder: against a loop over chunks from the definition, against funasr, and streams against the whole."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch.nn import functional

from megatron_aqaa.tokenizer.sanm import SanmConfig, SanmEncoder, SanmLayer

CONFIG = SanmConfig(input_size=56, output_size=32, attention_heads=4, linear_units=64, num_blocks=4)


@pytest.fixture(scope="module")
def encoder() -> SanmEncoder:
    torch.manual_seed(0)
    return SanmEncoder(CONFIG).double().eval()


def one_layer(layer: SanmLayer, hidden: torch.Tensor, cache: list[torch.Tensor]) -> torch.Tensor:
    """One chunk [frames, D] through one layer, frame by frame and head by head; `cache` holds keys and values."""
    attention = layer.self_attn
    normed = layer.norm1(hidden)
    query, key, value = attention.linear_q_k_v(normed).split(32, -1)
    keys, values = torch.cat((*cache[0::2], key)), torch.cat((*cache[1::2], value))
    context = torch.zeros(len(hidden), 32, dtype=hidden.dtype)
    for head in range(4):
        part = slice(8 * head, 8 * head + 8)
        weights = torch.softmax(query[:, part] @ keys[:, part].T / math.sqrt(8), -1)
        context[:, part] = weights @ values[:, part]
    memory = value.clone()
    for frame in range(len(value)):
        for tap in range(11):
            if 0 <= frame + tap - 5 < len(value):
                memory[frame] += attention.fsmn_block.weight[:, 0, tap] * value[frame + tap - 5]
    mixed = attention.linear_out(context) + memory
    hidden = hidden + mixed if layer.residual else mixed
    cache += [key[:4], value[:4]]
    del cache[:-8]  # four chunks
    return hidden + layer.feed_forward(layer.norm2(hidden))


def by_the_definition(encoder: SanmEncoder, frames: torch.Tensor) -> torch.Tensor:
    """[F, 56] → [F, 32]."""
    layers = [*encoder.encoders0, *encoder.encoders]
    caches: list[list[torch.Tensor]] = [[] for _ in layers]
    rows = [torch.zeros(56, dtype=frames.dtype)] * 5
    for position, frame in enumerate(frames, start=1):
        rates = [10000 ** (-i / 27) for i in range(28)]
        code = [math.sin(position * r) for r in rates] + [math.cos(position * r) for r in rates]
        rows.append(frame * math.sqrt(32) + torch.tensor(code, dtype=frames.dtype))
    outputs = []
    for start in range(0, len(frames), 4):
        hidden = torch.stack(rows[start : start + 9])
        for layer, cache in zip(layers, caches, strict=True):
            hidden = one_layer(layer, hidden, cache)
        outputs.append(encoder.after_norm(hidden)[5:])
    return torch.cat(outputs)


def noise(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 56, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 17, 23, 40])
def test_equals_the_definition(encoder: SanmEncoder, count: int) -> None:
    ours = encoder(noise(count)[None], torch.tensor([count]))[0]
    torch.testing.assert_close(ours, by_the_definition(encoder, noise(count)), rtol=0, atol=1e-10)


@torch.no_grad()
def test_neighbours_in_a_batch_do_not_matter(encoder: SanmEncoder) -> None:
    counts = [1, 6, 19, 30]
    padded = torch.nn.utils.rnn.pad_sequence([noise(c, seed=c) for c in counts], batch_first=True)
    together = encoder(padded + (padded == 0) * 7.0, torch.tensor(counts))  # what lies behind the end must not matter
    for row, count in zip(together, counts, strict=True):
        alone = encoder(noise(count, seed=count)[None], torch.tensor([count]))[0]
        torch.testing.assert_close(row[:count], alone, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(5))
def test_a_stream_gives_what_the_whole_gives(encoder: SanmEncoder, seed: int) -> None:
    choose, count = random.Random(seed), 61
    frames, state = noise(count, seed)[None], encoder.start(1, noise(1))
    parts, start = [], 0
    while start < count:
        stop = min(count, start + 4 * choose.randint(1, 5))
        hidden, state = encoder.stream(frames[:, start:stop], state)
        parts.append(hidden)
        start = stop
    torch.testing.assert_close(torch.cat(parts, 1), encoder(frames, torch.tensor([count])), rtol=0, atol=1e-10)


@torch.no_grad()
def test_equals_funasr() -> None:
    peer = pytest.importorskip("funasr.models.scama.encoder")
    kinds = {"input_layer": "pe_online", "kernel_size": 11, "selfattention_layer_type": "sanm"}
    theirs = peer.SANMEncoderChunkOpt(56, 32, 4, 64, 4, **kinds).eval()
    ours = SanmEncoder(CONFIG).eval()
    ours.load_state_dict(theirs.state_dict())  # the same names
    for count in (3, 8, 41):
        frames, outputs = noise(count)[None].float(), []
        cache = {"start_idx": 0, "chunk_size": [0, 4, 5], "encoder_chunk_look_back": 4, "opt": None}
        cache |= {"feats": torch.zeros(1, 5, 56), "tail_chunk": False}
        for start in range(0, count, 4):
            chunk = frames[:, start : start + 4].clone()
            hidden = theirs.forward_chunk(chunk, torch.tensor([chunk.shape[1]]), cache=cache)[0]
            outputs.append(hidden[:, -chunk.shape[1] :])
        torch.testing.assert_close(ours(frames, torch.tensor([count])), torch.cat(outputs, 1), rtol=0, atol=1e-5)


def test_gradients_reach_every_weight() -> None:
    encoder = SanmEncoder(CONFIG)
    encoder(noise(20)[None].float(), torch.tensor([20])).square().mean().backward()
    assert all(functional.relu(p.grad.abs()).sum() > 0 for p in encoder.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"attention_heads": 5}, "multiple of attention_heads = 5"), ({"kernel_size": 10}, "must be odd")],
)
def test_sizes_that_do_not_fit(changes: dict[str, int], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        SanmConfig(**changes)
