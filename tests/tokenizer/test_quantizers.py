from __future__ import annotations

import torch

from megatron_aqaa.tokenizer.quantizers import FiniteScalarQuantizer, FsqConfig, VectorQuantizer, VqEmaConfig


def quantizer() -> FiniteScalarQuantizer:
    torch.manual_seed(0)
    return FiniteScalarQuantizer(16, FsqConfig(num_values=6, num_levels=4))


def test_codes_are_digits_in_base_four() -> None:
    fsq = quantizer()
    hidden = 5 * torch.randn(200, 16)
    levels = fsq.levels(hidden)
    assert set(levels.round().unique().tolist()) == {0.0, 1.0, 2.0, 3.0}
    expected = [sum(round(v) * 4**i for i, v in enumerate(row)) for row in levels.tolist()]
    assert fsq.codes(hidden).tolist() == expected


def test_every_code_is_embedded_as_its_levels_are() -> None:
    fsq = quantizer()
    hidden = 5 * torch.randn(50, 16)
    torch.testing.assert_close(fsq.embed(fsq.codes(hidden)), fsq.embed_levels(fsq.levels(hidden)))
    everything = fsq.embed(torch.arange(len(fsq)))
    assert everything.shape == (4096, 16)
    assert len(everything.detach().mul(1e4).round().unique(dim=0)) == 4096


def test_rounding_passes_the_gradient_straight() -> None:
    fsq = quantizer()
    hidden = torch.randn(7, 16, requires_grad=True)
    fsq.levels(hidden).sum().backward()
    straight = hidden.grad.clone()
    hidden.grad = None
    (3.001 * torch.sigmoid(fsq.project_in(hidden))).sum().backward()
    torch.testing.assert_close(straight, hidden.grad)


def vector_quantizer(**settings: object) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(16, VqEmaConfig(**({"num_codes": 32, "code_size": 4} | settings))).train()


def alone(tensors: object) -> None:
    """One process: what all processes noted is what this one did."""


def everywhere(hidden: torch.Tensor) -> torch.Tensor:
    return torch.ones(hidden.shape[:2], dtype=torch.bool)


def test_the_codebook_follows_running_means_by_the_definition() -> None:
    vq = vector_quantizer(num_codes=3, decay=0.9, dead_ratio=0.0)
    hidden = torch.randn(2, 5, 16)
    valid = everywhere(hidden)
    valid[1, 3:] = False
    counts, sums = torch.zeros(3), torch.zeros(3, 4)
    for _ in range(3):
        states = torch.nn.functional.layer_norm(vq.project_in(hidden), (4,))[valid].detach()
        nearest = torch.cdist(states, vq.codebook).argmin(1)
        before = vq.codebook.clone()
        vq(hidden, valid)
        vq.after_step(alone)
        counts = 0.9 * counts + 0.1 * torch.bincount(nearest, minlength=3)
        sums = 0.9 * sums + 0.1 * torch.stack([states[nearest == k].sum(0) for k in range(3)])
        for k in range(3):
            expected = sums[k] / counts[k] if counts[k] > 0 else before[k]
            torch.testing.assert_close(vq.codebook[k], expected)


def test_nothing_moves_without_a_step_or_in_evaluation() -> None:
    vq = vector_quantizer()
    hidden = torch.randn(2, 5, 16)
    before = vq.codebook.clone()
    vq(hidden, everywhere(hidden))
    assert vq.codebook.equal(before) and vq.new_counts.sum() == 10
    vq.eval()(hidden, everywhere(hidden))
    assert vq.new_counts.sum() == 10


def test_shares_of_a_step_equal_one_batch() -> None:
    hidden = torch.randn(4, 5, 16)
    whole, shared = vector_quantizer(), vector_quantizer()
    whole(hidden, everywhere(hidden))
    for part in hidden.split(2):
        shared(part, everywhere(part))
    for vq in (whole, shared):
        vq.after_step(alone)
    torch.testing.assert_close(whole.codebook, shared.codebook)


def test_dead_codes_come_to_life() -> None:
    vq = vector_quantizer(num_codes=256)
    hidden = torch.randn(64, 50, 16)
    assert len(vq.codes(hidden).unique()) < 256
    for _ in range(40):
        vq(hidden, everywhere(hidden))
        vq.after_step(alone)
    assert len(vq.codes(hidden).unique()) >= 250
    assert (vq.counts >= 0.1 * vq.counts.mean()).all()


def test_gradients_pass_straight_and_commit_the_states() -> None:
    vq = vector_quantizer(commitment=0.5)
    hidden = torch.randn(1, 6, 16, requires_grad=True)
    valid = everywhere(hidden)
    valid[0, 4:] = False
    quantized = vq(hidden, valid)
    states = torch.nn.functional.layer_norm(vq.project_in(hidden), (4,))
    distance = (states - vq.codebook[vq.codes(hidden)])[valid].square().mean()
    torch.testing.assert_close(quantized.loss, 0.5 * distance)
    torch.testing.assert_close(quantized.embedded, vq.embed(vq.codes(hidden)), rtol=1e-4, atol=1e-5)
    straight = torch.autograd.grad(quantized.embedded.sum(), hidden, retain_graph=True)[0]
    expected = torch.autograd.grad(vq.project_out(states).sum(), hidden, retain_graph=True)[0]
    torch.testing.assert_close(straight, expected)
    committed = torch.autograd.grad(quantized.loss, hidden)[0]
    assert committed[0, :4].abs().sum() > 0 and not committed[0, 4:].any()


def test_a_resumed_codebook_moves_as_the_uninterrupted_one() -> None:
    hidden = torch.randn(6, 4, 5, 16)
    straight = vector_quantizer()
    for batch in hidden:
        straight(batch, everywhere(batch))
        straight.after_step(alone)
    first, second = vector_quantizer(), vector_quantizer()
    for vq, batches in ((first, hidden[:2]), (second, hidden[2:])):
        if vq is second:
            second.load_state_dict(first.state_dict())
        for batch in batches:
            vq(batch, everywhere(batch))
            vq.after_step(alone)
    assert straight.codebook.equal(second.codebook)


def test_balance_is_nought_for_even_uncorrelated_levels_alone() -> None:
    fsq = FiniteScalarQuantizer(16, FsqConfig(num_values=3, num_levels=4))
    even = torch.cartesian_prod(*[torch.arange(4.0)] * 3)
    assert fsq._imbalance(even) < 0.05  # the soft shares of the outer levels are a little smaller
    one_level = torch.cat((even[:, :2], torch.full((64, 1), 2.0)), 1)
    assert fsq._imbalance(one_level) > 0.3
    twice = torch.stack((even[:, 0], even[:, 0], even[:, 2]), 1)
    assert fsq._imbalance(twice) > 0.6  # two of three values correlate fully: (1 + 1) / 3


def test_balance_moves_the_levels_apart() -> None:
    torch.manual_seed(0)
    fsq = FiniteScalarQuantizer(16, FsqConfig())
    hidden = torch.randn(1, 500, 16)
    optimizer = torch.optim.Adam(fsq.parameters(), 0.05)
    before = len(fsq.codes(hidden).unique())
    for _ in range(60):
        optimizer.zero_grad()
        fsq(hidden, everywhere(hidden)).loss.backward()
        optimizer.step()
    assert len(fsq.codes(hidden).unique()) > 1.5 * before
