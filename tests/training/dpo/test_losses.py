"""Losses and gradients equal trl's on the same logits, or float64 closed forms where trl has none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from megatron_aqaa.training.dpo.losses import LOSSES, PairLogps, PreferenceLoss, log_ratios, rewards

GOLDENS = Path(__file__).parent / "goldens" / "preference_losses.safetensors"  # by make_preference_goldens.py
SETTINGS = {
    "sigmoid": PreferenceLoss("sigmoid", beta=0.1),
    "cdpo": PreferenceLoss("cdpo", beta=0.1, label_smoothing=0.2),
    "ipo": PreferenceLoss("ipo", beta=0.1),
    "ipo_sum": PreferenceLoss("ipo_sum", beta=0.1),
    "hinge": PreferenceLoss("hinge", beta=0.1),
    "robust": PreferenceLoss("robust", beta=0.1, label_smoothing=0.2),
}
MARGINS = torch.tensor([-300.0, -3.0, -0.25, 0.0, 0.5, 7.0, 300.0], dtype=torch.float64)


def golden_names() -> list[str]:
    with safe_open(GOLDENS, "pt") as file:
        return list(json.loads(file.metadata()["settings"]))


class Golden:
    """One setting of trl: inputs [2n, S, V], loss of each pair and gradient of their mean."""

    def __init__(self, name: str) -> None:
        with safe_open(GOLDENS, "pt") as file:
            self.settings = PreferenceLoss(**json.loads(file.metadata()["settings"])[name])
            self.logits, self.reference = file.get_tensor("logits"), file.get_tensor("reference_logits")
            self.labels, self.mask = file.get_tensor("labels"), file.get_tensor("mask")
            self.loss, self.gradient = file.get_tensor(f"{name}.loss"), file.get_tensor(f"{name}.gradient")

    def answers(self, logits: Tensor) -> PairLogps:
        """Sums of log-probabilities: first the chosen answers, then the rejected ones."""
        logps = logits.log_softmax(-1).gather(-1, self.labels[..., None])[..., 0]
        return PairLogps(*(logps * self.mask).sum(1).chunk(2))

    def num_targets(self) -> PairLogps:
        return PairLogps(*self.mask.sum(1).chunk(2))


@pytest.mark.parametrize("name", golden_names())
def test_losses_and_gradients_of_trl(name: str) -> None:
    golden = Golden(name)
    logits = golden.logits.clone().requires_grad_()
    ratios = log_ratios(golden.settings, golden.answers(logits), golden.answers(golden.reference), golden.num_targets())
    loss = golden.settings(ratios.chosen - ratios.rejected)
    loss.mean().backward()
    torch.testing.assert_close(loss.mean().detach(), golden.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits.grad, golden.gradient, rtol=1e-6, atol=1e-6)


def test_the_goldens_cover_what_trl_has() -> None:
    losses = {Golden(name).settings.loss for name in golden_names()}
    assert losses == {"sigmoid", "ipo", "hinge", "robust"}
    hinge = Golden(next(name for name in golden_names() if "hinge" in name))
    assert hinge.gradient.abs().max() > 1e-3
    assert hinge.logits.dtype == torch.float64


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("name", "value", "slope"),
    [
        (
            "cdpo",
            lambda m: -0.8 * log_sigmoid(0.1 * m) - 0.2 * log_sigmoid(-0.1 * m),
            lambda m: 0.1 * (1 / (1 + math.exp(-0.1 * m)) - 0.8),
        ),
        ("ipo_sum", lambda m: (m - 5.0) ** 2, lambda m: 2 * (m - 5.0)),
        ("sigmoid", lambda m: -log_sigmoid(0.1 * m), lambda m: -0.1 / (1 + math.exp(0.1 * m))),
        ("hinge", lambda m: max(0.0, 1 - 0.1 * m), lambda m: -0.1 if m < 10 else 0.0),
        (
            "robust",
            lambda m: (-0.8 * log_sigmoid(0.1 * m) + 0.2 * log_sigmoid(-0.1 * m)) / 0.6,
            lambda m: 0.1 * (-0.8 / (1 + math.exp(0.1 * m)) - 0.2 / (1 + math.exp(-0.1 * m))) / 0.6,
        ),
    ],
)  # fmt: skip
def test_closed_forms_in_float64(name, value, slope) -> None:  # type: ignore[no-untyped-def]
    margins = MARGINS.clone().requires_grad_()
    loss = SETTINGS[name](margins)
    loss.sum().backward()
    assert loss.dtype == torch.float64
    assert loss.tolist() == pytest.approx([value(m) for m in MARGINS.tolist()], rel=1e-12, abs=1e-15)
    assert margins.grad is not None
    assert margins.grad.tolist() == pytest.approx([slope(m) for m in MARGINS.tolist()], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sigmoid", math.log(2)), ("cdpo", math.log(2)), ("robust", math.log(2)),
        ("ipo", 25.0), ("ipo_sum", 25.0), ("hinge", 1.0),
    ],
)  # fmt: skip
def test_value_of_a_policy_that_is_its_reference(name: str, value: float) -> None:
    assert SETTINGS[name].value_at_reference == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("name", LOSSES)
def test_dtype_is_kept(name: str) -> None:
    assert SETTINGS[name](MARGINS.float()).dtype == torch.float32
    assert SETTINGS[name](MARGINS).isfinite().all()


def test_length_normalisation_divides_by_the_targets_of_each_answer() -> None:
    policy, reference = PairLogps(*torch.tensor([[-8.0], [-9.0]])), PairLogps(*torch.tensor([[-12.0], [-3.0]]))
    counts = PairLogps(*torch.tensor([[4.0], [3.0]]))
    sums = log_ratios(PreferenceLoss("sigmoid"), policy, reference, counts)
    means = log_ratios(PreferenceLoss("sigmoid", length_normalised=True), policy, reference, counts)
    assert [value.item() for value in (*sums, *means)] == [4.0, -6.0, 1.0, -2.0]
    assert [value.item() for value in log_ratios(SETTINGS["ipo"], policy, reference, counts)] == [1.0, -2.0]
    assert [value.item() for value in rewards(PreferenceLoss("sigmoid", beta=0.5), sums)] == [2.0, -3.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "sigmoid", "label_smoothing": 0.1}, "has no effect on sigmoid: leave it out, or choose `cdpo`"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "has no effect on ipo"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "has no effect on hinge"),
        ({"loss": "cdpo"}, "cdpo needs a share above 0 and below 0.5"),
        ({"loss": "robust", "label_smoothing": 0.5}, "robust needs a share above 0 and below 0.5"),
        ({"loss": "ipo", "length_normalised": True}, "`ipo` averages over tokens"),
        ({"loss": "ipo_sum", "length_normalised": True}, "use `ipo`, which is that"),
        ({"loss": "sigmoid", "beta": 0.0}, "dpo.beta = 0.0: must be above 0"),
        ({"loss": "sigmoid", "beta": math.nan}, "dpo.beta = nan"),
    ],
)
def test_settings_that_do_not_fit_the_loss_are_errors(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceLoss(**settings)  # type: ignore[arg-type]
