"""When training counts as gone wrong, and what is said then."""

from __future__ import annotations

import math

import pytest

from megatron_aqaa.training.speech_models.divergence import DivergenceConfig, DivergenceGuard

CONFIG = DivergenceConfig(ratio=2.0, patience=5, smoothing=0.5)


def follow(guard: DivergenceGuard, losses: list[float], start: int = 0) -> None:
    for step, loss in enumerate(losses, start):
        guard.check(step, loss, 1.0, 0.001)


def test_a_loss_that_rises_and_stays_up_is_named_with_its_best_step() -> None:
    with pytest.raises(FloatingPointError, match=r"averaged 1 at step 1 and .* at step 6.*lower the learning rate"):
        follow(DivergenceGuard(CONFIG), [2.0, 0.0, 4.0, *[8.0] * 20])


def norms(guard: DivergenceGuard, values: list[float]) -> None:
    for step, norm in enumerate(values):
        guard.check(step, 3.0, norm, 0.001)


def test_a_gradient_that_explodes_under_a_calm_loss_is_named() -> None:
    """Clipped, it need not show in the loss at once."""
    config = DivergenceConfig(gradient_ratio=10.0, patience=5, smoothing=0.5)
    with pytest.raises(FloatingPointError, match=r"norm averaged 1 at step 0 and .* at step 7, for 5 steps above"):
        norms(DivergenceGuard(config), [1.0, 1.0, 1.0, *[100.0] * 20])
    norms(DivergenceGuard(config), [1.0, *[8.0] * 50])


def test_a_gradient_that_is_gone_is_named() -> None:
    with pytest.raises(FloatingPointError, match="no gradient for 5 steps up to step 6, with a loss of 3"):
        norms(DivergenceGuard(CONFIG), [1.0, 1.0, *[0.0] * 20])


def test_a_spike_that_passes_is_no_divergence() -> None:
    guard = DivergenceGuard(CONFIG)
    follow(guard, [1.0, 1.0, 9.0, *[1.0] * 20, 9.0, *[1.0] * 20])
    assert guard.steps_above == 0


def test_patience_zero_switches_the_guard_off() -> None:
    guard = DivergenceGuard(DivergenceConfig(patience=0))
    follow(guard, [1.0, *[1e6] * 500])
    assert guard.steps_above == 500  # seen, and not stopped for


@pytest.mark.parametrize(("loss", "norm", "what"), [(math.nan, 1.0, "loss nan"), (1.0, math.inf, "gradient norm inf")])
def test_what_is_not_finite_is_named(loss: float, norm: float, what: str) -> None:
    with pytest.raises(FloatingPointError, match=f"{what} at step 7"):
        DivergenceGuard(CONFIG).check(7, loss, norm, 0.001)


def test_resumed_guard_stops_at_the_same_step() -> None:
    losses = [2.0, 0.0, 4.0, *[8.0] * 20]
    first = DivergenceGuard(CONFIG)
    follow(first, losses[:6])
    second = DivergenceGuard(CONFIG)
    second.load_state_dict(first.state_dict())
    with pytest.raises(FloatingPointError, match="at step 6"):
        follow(second, losses[6:], start=6)
