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
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float64, torch.float64),
]


CHUNK = 64  # kChunk of csrc/ops/accumulate_rows.h


def by_definition(destination, gradient, rows, scale):
    out = destination.double().clone()
    for t, row in enumerate(rows.tolist()):
        if row >= 0:
            out[row] += scale * gradient[t].double()
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("destination_dtype", "dtype"), PAIRS)
@pytest.mark.parametrize("hidden", [1, 8, 1030, 1032])
@pytest.mark.parametrize("deterministic", [True, False])
def test_equals_the_definition(device, destination_dtype, dtype, hidden, deterministic):
    generator = torch.Generator().manual_seed(0)
    destination = torch.randn(11, hidden, generator=generator).to(destination_dtype)
    gradient = torch.randn(60, hidden, generator=generator).to(dtype)
    rows = torch.randint(-1, 11, (60,), generator=generator)
    exact = by_definition(destination, gradient, rows, 0.75)
    ours = destination.clone().to(device)
    ops.accumulate_rows_(ours, gradient.to(device), rows.to(device), scale=0.75, deterministic=deterministic)
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


RUNS = st.lists(st.tuples(st.integers(-1, 5), st.integers(1, 3 * CHUNK)), max_size=8)


@given(RUNS)
@settings(deadline=None)
def test_runs_of_any_length_are_cut_and_put_together(runs):
    rows = torch.tensor([row for row, count in runs for _ in range(count)], dtype=torch.long)
    gradient = torch.arange(rows.numel()).remainder(13)[:, None].expand(-1, 3).float()  # whole numbers: exact in fp32
    destination = torch.zeros(6, 3)
    ops.accumulate_rows_(destination, gradient, rows, scale=2.0)
    assert torch.equal(destination.double(), by_definition(torch.zeros(6, 3), gradient, rows, 2.0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("destination_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, CHUNK + 1, 50 * CHUNK + 7])
def test_a_row_that_occurs_thousands_of_times_is_rounded_once(device, destination_dtype, count):
    rows = torch.full((count,), 2)
    rows[: count // 3] = 0  # so that the long run begins inside a chunk
    rows = rows[torch.randperm(count, generator=torch.Generator().manual_seed(0))].to(device)
    destination = torch.zeros(3, 20, dtype=destination_dtype, device=device)
    ops.accumulate_rows_(destination, torch.ones(count, 20, dtype=torch.bfloat16, device=device), rows)
    expected = torch.tensor([count // 3, 0, count - count // 3]).to(destination_dtype).tolist()
    assert [row.unique().tolist() for row in destination.cpu()] == [[value] for value in expected]


@pytest.mark.parametrize("deterministic", [True, False])
def test_on_the_cpu_neither_threads_nor_the_fast_mode_change_a_bit(deterministic):
    gradient, rows = torch.randn(3000, 300), torch.randint(-1, 4, (3000,))
    rows[1000:] = 2
    sums, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            sums.append(torch.zeros(4, 300))
            ops.accumulate_rows_(sums[-1], gradient, rows, deterministic=deterministic)
    finally:
        torch.set_num_threads(before)
    expected = torch.zeros(4, 300)
    ops.accumulate_rows_(expected, gradient, rows)
    assert all(torch.equal(one, expected) for one in sums)


@pytest.mark.gpu
def test_on_a_gpu_the_deterministic_sum_repeats_bit_for_bit():
    gradient, rows = torch.randn(20_000, 512, device="cuda"), torch.randint(-1, 50, (20_000,), device="cuda")
    rows[10_000:] = 7
    sums = [torch.zeros(50, 512, device="cuda") for _ in range(4)]
    for one in sums:
        ops.accumulate_rows_(one, gradient, rows)
    assert all(torch.equal(one, sums[0]) for one in sums)
    fast = torch.zeros(50, 512, device="cuda")
    ops.accumulate_rows_(fast, gradient, rows, deterministic=False)
    torch.testing.assert_close(fast, sums[0], atol=1e-2, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [True, False])
def test_on_a_gpu_rows_outside_the_table_are_left_out(deterministic):
    rows = torch.tensor([0, 4, -1, 10**12, 3], device="cuda")
    destination = torch.zeros(4, 8, device="cuda")
    ops.accumulate_rows_(destination, torch.ones(5, 8, device="cuda"), rows, deterministic=deterministic)
    assert destination[:, 0].tolist() == [1.0, 0.0, 0.0, 1.0]


def test_columns_of_a_wider_gradient():
    wide, rows = torch.arange(2400.0).reshape(200, 12), torch.randint(-1, 5, (200,))  # exact in fp32
    destination = torch.zeros(5, 7)
    ops.accumulate_rows_(destination, wide[:, 5:], rows)
    assert torch.equal(destination.double(), by_definition(torch.zeros(5, 7), wide[:, 5:], rows, 1.0))


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
        (
            (torch.zeros(4, 6).half(), torch.zeros(2, 6).bfloat16(), torch.zeros(2).long()),
            "destination must have the dtype of gradient, or one",
        ),
        (
            (torch.zeros(4, 6), torch.zeros(2, 6).double(), torch.zeros(2).long()),
            "destination must have the dtype of gradient, or one",
        ),
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
    with pytest.raises(RuntimeError, match="order is needed: on the CPU rows are added in order"):
        operator(destination, gradient, torch.tensor([0, 1]), None, 1.0)
    with pytest.raises(RuntimeError, match=r"order\[1\] = 2 is outside \[0, 2\)"):
        operator(destination, gradient, torch.tensor([0, 1]), torch.tensor([0, 2]), 1.0)
    assert not destination.any()


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    rows, order = torch.sort(torch.randint(-1, 5, (9,)), stable=True)
    arguments = (torch.zeros(5, 6), torch.randn(9, 6), rows, order)
    operator = torch.ops.megatron_aqaa.accumulate_rows_.default
    results = torch.library.opcheck(operator, (*(a.to(device) for a in arguments), 0.5))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.gpu
def test_opcheck_as_the_rows_come():
    arguments = (torch.zeros(5, 6), torch.randn(9, 6), torch.randint(-1, 5, (9,)))
    operator = torch.ops.megatron_aqaa.accumulate_rows_.default
    results = torch.library.opcheck(operator, (*(a.to("cuda") for a in arguments), None, 0.5))
    assert set(results.values()) == {"SUCCESS"}
