"""Rows added into rows: definition as a loop, eager reference, C++ on the CPU, CUDA where there is one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_aqaa import ops
from megatron_aqaa.ops.accumulate_rows import accumulate_rows_reference_

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PAIRS = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float64, torch.float64),
]


def by_definition(destination, gradient, rows, scale):
    out = destination.double().clone()
    for t, row in enumerate(rows.tolist()):
        if row >= 0:
            out[row] += scale * gradient[t].double()
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("destination_dtype", "dtype"), PAIRS)
@pytest.mark.parametrize("hidden", [1, 8, 1030])
def test_equals_the_definition(device, destination_dtype, dtype, hidden):
    generator = torch.Generator().manual_seed(0)
    destination = torch.randn(11, hidden, generator=generator).to(destination_dtype)
    gradient = torch.randn(60, hidden, generator=generator).to(dtype)
    rows = torch.randint(-1, 11, (60,), generator=generator)
    exact = by_definition(destination, gradient, rows, 0.75)
    ours = destination.clone().to(device)
    ops.accumulate_rows_(ours, gradient.to(device), rows.to(device), scale=0.75)
    eager = destination.clone()
    ascending, order = torch.sort(rows, stable=True)
    accumulate_rows_reference_(eager, gradient, ascending, order, 0.75)
    tolerance = 4 * torch.finfo(destination_dtype).eps
    torch.testing.assert_close(ours.cpu().double(), exact, atol=8 * tolerance, rtol=tolerance)
    torch.testing.assert_close(eager.double(), exact, atol=8 * tolerance, rtol=tolerance)


@given(st.lists(st.integers(-2, 6), max_size=40), st.integers(1, 5))
@settings(deadline=None)
def test_only_the_rows_that_occur_are_touched(rows, hidden):
    destination = torch.full((7, hidden), torch.nan)
    occurring = sorted({row for row in rows if row >= 0})
    destination[occurring] = 0.0
    ops.accumulate_rows_(destination, torch.ones(len(rows), hidden), torch.tensor(rows, dtype=torch.long))
    assert destination[occurring].tolist() == [[float(rows.count(row))] * hidden for row in occurring]
    assert destination.isnan().sum() == (7 - len(occurring)) * hidden


def test_non_contiguous_gradient():
    destination, gradient = torch.zeros(3, 4), torch.randn(8, 6).t()[:, ::2]
    rows = torch.tensor([2, 0, 2, 1, -1, 2])
    ops.accumulate_rows_(destination, gradient, rows)
    torch.testing.assert_close(destination.double(), by_definition(torch.zeros(3, 4), gradient, rows, 1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4, 6).t(), torch.zeros(2, 4), torch.zeros(2).long()), r"destination must be \[rows, H\]"),
        ((torch.zeros(4, 6), torch.zeros(2, 5), torch.zeros(2).long()), r"gradient must be \[T, 6\]"),
        ((torch.zeros(4, 6), torch.zeros(2, 6), torch.zeros(3).long()), r"rows and order must be \[2\]"),
        ((torch.zeros(4, 6), torch.zeros(2, 6), torch.zeros(2).int()), "rows must be int64"),
        ((torch.zeros(4, 6), torch.zeros(2, 6), torch.tensor([1, 4])), r"rows\[1\] = 4 is outside the table of 4 rows"),
        ((torch.zeros(4, 6).half(), torch.zeros(2, 6), torch.zeros(2).long()), "destination must be float32 or have"),
        ((torch.zeros(4, 6), torch.zeros(2, 6).double(), torch.zeros(2).long()), "destination must be float32 or have"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        ops.accumulate_rows_(*arguments)


def test_the_operator_refuses_unsorted_rows_and_wild_order():
    operator = torch.ops.megatron_aqaa.accumulate_rows_
    destination, gradient = torch.zeros(4, 6), torch.ones(2, 6)
    with pytest.raises(RuntimeError, match=r"rows must be ascending, but rows\[1\] = 0 follows 1"):
        operator(destination, gradient, torch.tensor([1, 0]), torch.tensor([0, 1]), 1.0)
    with pytest.raises(RuntimeError, match=r"order\[1\] = 2 is outside \[0, 2\)"):
        operator(destination, gradient, torch.tensor([0, 1]), torch.tensor([0, 2]), 1.0)
    assert not destination.any()


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    rows, order = torch.sort(torch.randint(-1, 5, (9,)), stable=True)
    arguments = (torch.zeros(5, 6), torch.randn(9, 6), rows, order)
    operator = torch.ops.megatron_aqaa.accumulate_rows_.default
    torch.library.opcheck(operator, (*(a.to(device) for a in arguments), 0.5))
