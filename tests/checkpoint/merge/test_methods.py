"""Merge methods on tensors in memory: hand-worked numbers, blocks of any size, and the statistics of random ones.

Equality with mergekit is in `test_merge.py`.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from megatron_aqaa.checkpoint.merge.methods import (
    dare_linear,
    dare_ties,
    linear,
    model_stock,
    slerp,
    task_arithmetic,
    ties,
)

MODELS, WEIGHT, DENSITY = 3, [0.6, 0.3, -0.2], [0.4, 0.7, 0.05]
METHODS = {
    "linear": functools.partial(linear, weight=[5, 5, 1, 2]),
    "task_arithmetic": functools.partial(task_arithmetic, weight=WEIGHT, scale=0.5),
    "slerp": functools.partial(slerp, t=0.3),
    "ties": functools.partial(ties, weight=WEIGHT, density=DENSITY),
    "ties rescaled": functools.partial(ties, weight=WEIGHT, density=DENSITY, rescale=True),
    "dare_linear": functools.partial(dare_linear, weight=WEIGHT, density=DENSITY, seed="x"),
    "dare_ties": functools.partial(dare_ties, weight=WEIGHT, density=DENSITY, seed="x", normalize=True),
    "model_stock": model_stock,
}


def near(shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator, dtype=dtype)
    return [base, *(base + 0.1 * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(count))]


def inputs(name: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return near((37, 29), 1 if name == "slerp" else MODELS, dtype)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rows", [1, 4, 36])
def test_blocks_give_what_whole_tensors_give(name, rows):
    tensors = inputs(name)
    whole = next(METHODS[name]([tensors]))
    blocks = list(zip(*(tensor.split(rows) for tensor in tensors), strict=True))
    merged = torch.cat(list(METHODS[name](blocks)))
    if name in ("slerp", "model_stock", "ties rescaled") or name.startswith("dare"):  # sums over the tensor
        torch.testing.assert_close(merged, whole, rtol=1e-6, atol=1e-7)
    else:
        assert torch.equal(merged, whole)


@pytest.mark.parametrize("name", METHODS)
def test_inputs_stay_and_float64_stays_float64(name):
    tensors = inputs(name, torch.float64)
    before = [tensor.clone() for tensor in tensors]
    merged = next(METHODS[name]([tensors]))
    assert merged.dtype == torch.float64
    assert all(map(torch.equal, tensors, before))
    narrow = next(METHODS[name]([[tensor.float() for tensor in tensors]]))
    torch.testing.assert_close(merged.float(), narrow, rtol=0, atol=1e-5 if "ties" not in name else 0.2)


@pytest.mark.parametrize("name", METHODS)
def test_equal_models_merge_to_themselves(name):
    base = inputs(name)[0]
    merged = next(METHODS[name]([[base.clone() for _ in inputs(name)]]))
    torch.testing.assert_close(merged, base, rtol=1e-6, atol=1e-6)


def test_linear_by_hand():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([4.0, -2.0])
    torch.testing.assert_close(next(linear([[a, b]], weight=[2, 1])), torch.tensor([2.0, 2.0 / 3.0]))
    assert next(linear([[a, b]], weight=[2, 1], normalize=False)).tolist() == [6.0, 2.0]


def test_task_arithmetic_by_hand():
    base, a, b = torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([0.0])
    assert next(task_arithmetic([[base, a, b]], weight=[1, 2])).item() == 1.0  # 1 + 2·1 − 1·2
    assert next(task_arithmetic([[base, a, b]], weight=[1, 1], normalize=True, scale=4)).item() == 3.0  # 1 + 4·½


def test_slerp_by_hand():
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    torch.testing.assert_close(next(slerp([[a, b]], t=0.5)), torch.tensor([2.0, 2.0]) * 0.5**0.5)
    assert next(slerp([[a, 3 * a]], t=0.5)).tolist() == [4.0, 0.0]  # parallel: straight
    assert next(slerp([[a, torch.zeros(2)]], t=0.25)).isfinite().all()


def test_ties_by_hand():
    base = torch.zeros(4)
    a, b = torch.tensor([4.0, -3.0, 1.0, 0.5]), torch.tensor([-1.0, -2.0, 3.0, 0.25])
    # density ½ keeps 4, −3 of a and −2, 3 of b; signs of the sums: +, −, +, none
    assert next(ties([[base, a, b]], weight=[1, 1], density=[0.5, 0.5])).tolist() == [4.0, -2.5, 3.0, 0.0]
    # all kept: −1 of b loses the vote
    assert next(ties([[base, a, b]], weight=[1, 1], density=[1, 1])).tolist() == [4.0, -2.5, 2.0, 0.375]


def test_model_stock_by_hand():
    base, a, b = torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert next(model_stock([[base, a, b]])).tolist() == [0.0, 0.0]  # changes at right angles: the base
    torch.testing.assert_close(next(model_stock([[base, a, a]])), a)  # the same change: the mean


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("values", ["distinct", "many equal", "zero"])
def test_ties_keeps_the_largest_and_of_equals_the_first(density, values):
    change = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    change = {"distinct": change, "many equal": (change * 2).round(), "zero": change * 0}[values]
    merged = next(ties([[torch.zeros(1000), change]], weight=[1], density=[density]))
    count = max(1, int(density * 1000)) if density else 0
    order = change.abs().argsort(descending=True, stable=True)
    wanted = torch.zeros(1000)
    wanted[order[:count]] = change[order[:count]]
    assert torch.equal(merged, wanted)


@pytest.mark.parametrize("method", [dare_linear, dare_ties])
def test_dare_keeps_its_share_and_the_expectation(method):
    base, change = torch.zeros(200_000), torch.randn(200_000, generator=torch.Generator().manual_seed(2))
    merged = next(method([[base, change]], weight=[1], density=[0.3], seed="a"))
    kept = merged != 0
    assert abs(float(kept.float().mean()) - 0.3) < 4 * (0.3 * 0.7 / 200_000) ** 0.5
    torch.testing.assert_close(merged.abs().sum(), change.abs().sum(), rtol=1e-5, atol=0)  # as mergekit rescales
    factor = merged[kept] / change[kept]
    assert float(factor.max() - factor.min()) < 1e-5  # one factor, near 1 / density
    assert abs(float(factor.mean()) - 1 / 0.3) < 0.05
    plain = next(method([[base, change]], weight=[1], density=[0.3], seed="a", rescale=False))
    assert torch.equal(plain, torch.where(kept, change, base))


def test_dare_averages_to_the_change():
    change = torch.tensor([1.0, -2.0, 0.5, 3.0]).repeat(1000)
    merges = [next(dare_linear([[change * 0, change]], weight=[1], density=[0.5], seed=str(i))) for i in range(200)]
    mean = torch.stack(merges).mean(0).view(-1, 4).mean(0)
    torch.testing.assert_close(mean, change[:4], rtol=0.02, atol=0)


def test_dare_differs_between_seeds_and_models():
    change = torch.ones(1000)
    models = [change * 0, change, change * 10]
    merge = lambda seed: next(dare_linear([models], weight=[1, 1], density=[0.5, 0.5], seed=seed))
    assert not torch.equal(merge("a"), merge("b"))
    assert len(merge("a").unique()) == 4  # none, one, the other, both
