"""Which steps are turned down, by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from megatron_aqaa import platform
from megatron_aqaa.training.monitoring.guards import GuardConfig, Guards, Past, agreed

NEVER = lambda: False
LOSSES = (3.0, 5.0, 4.0, 4.5, 2.0)  # median 4, absolute deviations 1, 1, 0, .5, 2: their median 1


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    platform.initialize(platform.ParallelConfig())
    yield
    platform.shutdown()


def test_the_limit_by_hand() -> None:
    config = GuardConfig(spike_deviations=3.0, least_spike=1.0, spike_window=5)
    guards = Guards(config, NEVER, Past(LOSSES))
    assert guards.limit() == pytest.approx(4.0 + 3.0 * 1.4826)
    assert guards.objection_to(8.44, 1.0) is None
    assert guards.objection_to(8.45, 1.0) == "loss 8.45 is a spike: above 8.448"


def test_a_small_spike_is_none() -> None:
    guards = Guards(GuardConfig(spike_deviations=3.0, least_spike=6.0, spike_window=5), NEVER, Past(LOSSES))
    assert guards.limit() == 10.0
    flat = Guards(GuardConfig(spike_window=3), NEVER, Past((0.7, 0.7, 0.7)))
    assert flat.limit() == pytest.approx(1.7)


def test_nothing_is_a_spike_until_the_window_is_full() -> None:
    guards = Guards(GuardConfig(spike_window=3), NEVER, Past())
    assert guards(1.0, 1.0) and guards(1e6, 1.0) and guards(1.0, 1.0)
    assert not guards(1e6, 1.0)
    assert guards.limit() < 1e6  # a turned down loss did not enter the window


def test_the_window_is_of_the_last_losses() -> None:
    guards = Guards(GuardConfig(spike_window=3), NEVER, Past((100.0,)))
    for loss in (1.0, 2.0, 3.0):
        guards(loss, 1.0)
    assert list(guards.losses) == [1.0, 2.0, 3.0]


def test_without_the_rule_every_finite_loss_passes() -> None:
    guards = Guards(GuardConfig(spike_deviations=None, spike_window=1), NEVER, Past((1.0,)))
    assert guards(1e30, 1e30)
    assert not guards(math.inf, 1.0)


@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [(math.nan, 1.0, "loss is nan"), (-math.inf, 1.0, "loss is -inf"), (1.0, math.inf, "gradient norm is inf")],
)
def test_what_is_no_number_is_turned_down_from_the_first_step(loss: float, norm: float, reason: str) -> None:
    guards = Guards(GuardConfig(), NEVER, Past())
    assert not guards(loss, norm)
    assert guards.objection == reason
    assert guards.skipped == 1
    assert guards(1.0, 1.0)
    assert guards.objection is None
    assert (guards.skipped, guards.skipped_in_a_row) == (1, 0)


def test_too_many_in_a_row_end_the_run() -> None:
    guards = Guards(GuardConfig(max_skipped_in_a_row=2), NEVER, Past())
    guards(math.nan, 1.0)
    guards.give_up_at_limit(1)
    guards(math.nan, 1.0)
    with pytest.raises(FloatingPointError, match=r"step 2 was skipped \(loss is nan\), the 2\. in a row and the 2\."):
        guards.give_up_at_limit(2)


def test_the_short_way_to_no_objection_is_the_rule() -> None:
    """Most losses are let through by the smallest of the window; the rest by median and deviation, as written down."""
    random = np.random.default_rng(0)
    judged = []
    for _ in range(300):
        past = tuple(random.normal(3.0, random.choice([0.01, 1.0, 3.0]), 5).tolist())
        guards = Guards(GuardConfig(spike_window=5, spike_deviations=2.0, least_spike=0.5), NEVER, Past(past))
        loss = float(random.normal(4.0, 2.0))
        assert (guards.objection_to(loss, 1.0) is not None) == (loss > guards.limit())
        judged.append((loss > guards.limit(), loss > min(past) + 0.5))
    assert {(True, True), (False, True), (False, False)} == set(judged)


def test_too_many_in_all_end_the_run_whatever_the_session() -> None:
    guards = Guards(GuardConfig(max_skipped=3), NEVER, Past((), skipped=2))
    guards(1.0, 1.0)
    guards.give_up_at_limit(1)
    guards(1.0, math.nan)
    with pytest.raises(FloatingPointError, match=r"guards\.max_skipped = 3\. Lower optimizer\.learning_rate"):
        guards.give_up_at_limit(2)


def test_a_stop_is_agreed_in_the_same_breath() -> None:
    requested = iter([False, True])
    guards = Guards(GuardConfig(), lambda: next(requested), Past())
    guards(1.0, 1.0)
    assert not guards.stopping
    assert guards(1.0, 1.0)
    assert guards.stopping


def test_flags_of_one_process_are_its_own() -> None:
    assert agreed(True, False, True) == [True, False, True]


@pytest.mark.parametrize(
    ("name", "value"),
    [("spike_deviations", 0.0), ("least_spike", -1.0), ("spike_window", 0), ("max_skipped_in_a_row", 0)],
)
def test_settings_that_make_no_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"guards.{name} = "):
        GuardConfig(**{name: value})  # type: ignore[arg-type]
