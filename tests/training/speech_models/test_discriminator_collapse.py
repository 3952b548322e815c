"""When discriminators count as collapsed, and what is said then."""

from __future__ import annotations

import pytest

from megatron_aqaa.training.speech_models.discriminator_collapse import CollapseConfig, CollapseGuard

CONFIG = CollapseConfig(min_spread=0.01, won_ratio=0.1, patience=4, smoothing=0.0)


def follow(guard: CollapseGuard, steps: list[tuple[float, float]], start: int = 0) -> None:
    for step, (loss, spread) in enumerate(steps, start):
        guard.check(step, loss, spread)


def test_scores_that_are_all_alike_are_named() -> None:
    with pytest.raises(
        FloatingPointError, match=r"for 4 steps up to step 5 they scored everything alike \(spread 0.001"
    ):
        follow(CollapseGuard(CONFIG), [(8.0, 0.5), (4.0, 0.3), *[(4.0, 0.001)] * 9])


def test_discriminators_that_always_win_are_named() -> None:
    with pytest.raises(FloatingPointError, match=r"won: for 4 steps up to step 4 .* below 0.1 times the 8 that"):
        follow(CollapseGuard(CONFIG), [(8.0, 0.5), *[(0.1, 0.5)] * 9])


def test_a_short_spell_is_no_collapse() -> None:
    guard = CollapseGuard(CONFIG)
    follow(guard, [(8.0, 0.5), *[(0.1, 0.001)] * 3, (4.0, 0.5), *[(0.1, 0.001)] * 3, (4.0, 0.5)])
    assert (guard.steps_dead, guard.steps_won) == (0, 0)


def test_patience_zero_switches_the_guard_off() -> None:
    guard = CollapseGuard(CollapseConfig(patience=0))
    follow(guard, [(8.0, 0.5), *[(0.0, 0.0)] * 500])
    assert min(guard.steps_dead, guard.steps_won) > CollapseConfig().patience  # seen, and let pass


def test_averages_by_hand() -> None:
    guard = CollapseGuard(CollapseConfig(smoothing=0.5))
    follow(guard, [(8.0, 1.0), (4.0, 0.5), (2.0, 0.5)])
    assert (guard.first_loss, guard.loss, guard.spread) == (8.0, 4.0, 0.625)


def test_resumed_guard_stops_at_the_same_step() -> None:
    steps = [(8.0, 0.5), *[(4.0, 0.001)] * 9]
    first, second = CollapseGuard(CONFIG), CollapseGuard(CONFIG)
    follow(first, steps[:3])
    second.load_state_dict(first.state_dict())
    with pytest.raises(FloatingPointError, match="up to step 4"):
        follow(second, steps[3:], start=3)
