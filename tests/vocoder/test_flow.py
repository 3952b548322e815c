"""Flow matching against its closed forms, in double precision."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_aqaa.vocoder import flow
from tests.vocoder.tiny_vocoder import random_codes, tiny_acoustic


@pytest.fixture
def ends() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return tuple(torch.randn(3, 5, 4, generator=source, dtype=torch.float64) for _ in range(2))


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_path_starts_at_the_noise_and_ends_at_the_data(ends):
    noise, data = ends
    torch.testing.assert_close(flow.path_point(noise, data, times(0, 0, 0)), noise, rtol=0, atol=0)
    torch.testing.assert_close(flow.path_point(noise, data, times(1, 1, 1)), data + 1e-6 * noise, rtol=0, atol=1e-12)


def test_path_identity(ends):
    """From any point, its velocity for the time that is left leads to the data."""
    noise, data = ends
    t = times(0.1, 0.5, 0.93)
    arrived = flow.path_point(noise, data, t) + (1 - t)[:, None, None] * flow.path_velocity(noise, data)
    torch.testing.assert_close(arrived, data + flow.SIGMA_MIN * noise, rtol=0, atol=1e-12)


def test_velocity_is_the_derivative_of_the_path(ends):
    noise, data = ends
    t, h = times(0.2, 0.4, 0.9), 1e-4
    slope = (flow.path_point(noise, data, t + h) - flow.path_point(noise, data, t - h)) / (2 * h)
    torch.testing.assert_close(slope, flow.path_velocity(noise, data), rtol=0, atol=1e-9)


def test_gaussian_velocity_is_the_best_linear_guess():
    """Regress dy/dt on y for many independent normal ends: the slope at t is that of the formula."""
    source = torch.Generator().manual_seed(1)
    noise, data = (torch.randn(200_000, generator=source, dtype=torch.float64) for _ in range(2))
    for t in (0.0, 0.3, 0.5, 0.9):
        y = flow.path_point(noise, data, torch.full((200_000,), t, dtype=torch.float64))
        slope = (y * flow.path_velocity(noise, data)).mean() / y.square().mean()
        guess = flow.gaussian_velocity(torch.ones(1, dtype=torch.float64), times(t))
        assert float(guess) == pytest.approx(float(slope), abs=0.02)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_euler_on_the_exact_field_arrives_in_any_number_of_steps(ends, steps):
    noise, data = ends

    def exact(y: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return (data + flow.SIGMA_MIN * noise - y) / (1 - time.double())[:, None, None]  # where the path must go from y

    torch.testing.assert_close(flow.euler(exact, noise, steps), data + flow.SIGMA_MIN * noise, rtol=0, atol=1e-6)


def test_euler_converges_to_the_solution():
    """dy/dt = −3 y from 1: e⁻³ at t = 1; twice the steps, about half the error."""

    def error(steps: int) -> float:
        return abs(float(flow.euler(lambda y, t: -3 * y, torch.ones(1, 1), steps)) - math.exp(-3))

    assert error(64) < 0.01
    assert 1.6 < error(32) / error(64) < 2.4


def test_euler_against_an_adaptive_solver():
    """On the field of a network, in double precision: the error falls with the steps, and ends below 1 %."""
    solver = pytest.importorskip("torchdiffeq")
    model, codes = tiny_acoustic().double(), random_codes(1, 3)
    noise = torch.randn(1, 18, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        field = model.field(model.predict(codes).condition, flow.GUIDANCE)
        exact = solver.odeint(
            lambda t, y: field(y, t.expand(len(y))), noise, times(0, 1), method="dopri5", rtol=1e-8, atol=1e-8
        )[-1]
        errors = [float((flow.euler(field, noise, steps) - exact).norm() / exact.norm()) for steps in (8, 32, 128)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.01


def test_euler_refuses_no_steps():
    with pytest.raises(ValueError, match="at least 1 step, not 0"):
        flow.euler(lambda y, t: y, torch.ones(1, 1), 0)


def test_schedule_begins_slowly_and_covers_the_interval():
    schedule = flow.cosine_schedule(torch.linspace(0, 1, 11))
    assert schedule[0] == 0 and float(schedule[-1]) == pytest.approx(1, abs=1e-6)
    steps = schedule.diff()
    assert (steps.diff() > 0).all()
    assert float(schedule[5]) == pytest.approx(1 - math.sqrt(0.5), abs=1e-6)  # hand-worked: 1 − cos 45°


def test_guidance(ends):
    conditional, unconditional = ends
    assert torch.equal(flow.guided(conditional, unconditional, 0.0), conditional)
    published = 1.7 * conditional - 0.7 * unconditional
    torch.testing.assert_close(flow.guided(conditional, unconditional, flow.GUIDANCE), published)
