"""Makes `goldens/preference_losses.safetensors` with trl, which the tests do not need.

    python3.11 -m venv trl-venv
    trl-venv/bin/pip install torch==2.13.0 trl==1.16.0
    trl-venv/bin/python tests/training/dpo/make_preference_goldens.py

The file holds logits of a policy and a reference [2n, S, V] (first all chosen answers, then all rejected ones), labels
and mask [2n, S], and for every setting trl's mean loss and its gradient with respect to the policy's logits, all in
float64. Position i of the logits says label i: trl, which shifts, is given one position more in front.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from trl import DPOTrainer
from trl.trainer import dpo_trainer
from trl.trainer.utils import selective_log_softmax

GOLDENS = Path(__file__).parent / "goldens" / "preference_losses.safetensors"
NUM_PAIRS, LENGTH, VOCABULARY = 4, 9, 13
SETTINGS: dict[str, dict[str, Any]] = {
    "sigmoid": {"loss": "sigmoid", "beta": 0.3},
    "sigmoid, small beta": {"loss": "sigmoid", "beta": 0.01},
    "sigmoid, length normalised": {"loss": "sigmoid", "beta": 2.0, "length_normalised": True},
    "hinge": {"loss": "hinge", "beta": 0.2},
    "ipo": {"loss": "ipo", "beta": 0.1},
    "robust": {"loss": "robust", "beta": 0.3, "label_smoothing": 0.2},
    "robust, large beta": {"loss": "robust", "beta": 2.0, "label_smoothing": 0.05},
}


def inputs() -> dict[str, Tensor]:
    """Random logits, and answers of different lengths after prompts of one."""
    random = torch.Generator().manual_seed(0)
    shape = (2 * NUM_PAIRS, LENGTH, VOCABULARY)
    policy = torch.randn(shape, generator=random, dtype=torch.float64)
    reference = policy + 0.7 * torch.randn(shape, generator=random, dtype=torch.float64)
    lengths = torch.randint(2, LENGTH - 1, (2 * NUM_PAIRS, 1), generator=random)
    mask = (torch.arange(LENGTH) >= 2) & (torch.arange(LENGTH) < 2 + lengths)
    labels = torch.randint(0, VOCABULARY, shape[:2], generator=random)
    return {"logits": policy, "reference_logits": reference, "labels": labels, "mask": mask.to(torch.int64)}


def model(logits: Tensor) -> Any:
    """Stands for a model with trl's fused head: log-probabilities of the labels, 0 where there is none."""

    def forward(labels: Tensor, **_: Any) -> SimpleNamespace:
        told = labels[:, 1:]
        logps = selective_log_softmax(logits, told.clamp(min=0)).masked_fill(told < 0, 0.0)
        zeros = torch.zeros_like(logps)
        return SimpleNamespace(log_probs=logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    return forward


def trainer(settings: dict[str, Any], reference: Any) -> Any:
    """What `DPOTrainer._compute_loss` reads of a trainer."""
    alone = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    name = "sigmoid_norm" if settings.get("length_normalised") else settings["loss"]
    return SimpleNamespace(
        model=SimpleNamespace(training=True), ref_model=reference, accelerator=alone, beta=settings["beta"],
        label_smoothing=settings.get("label_smoothing", 0.0), loss_types=[name], loss_weights=[1.0],
        f_divergence_type="reverse_kl", aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=False,
        use_weighting=False, args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip


def golden(settings: dict[str, Any], data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean loss, and gradient [2n, S, V]."""
    logits = data["logits"].clone().requires_grad_()
    front = data["labels"].new_zeros(2 * NUM_PAIRS, 1)
    batch = {
        "input_ids": torch.cat([front, data["labels"]], 1),
        "completion_mask": torch.cat([front, data["mask"]], 1),
        "attention_mask": torch.ones(2 * NUM_PAIRS, LENGTH + 1),
    }
    loss = DPOTrainer._compute_loss(trainer(settings, model(data["reference_logits"])), model(logits), batch, False)
    loss.backward()
    return loss.detach(), logits.grad


def main() -> None:
    """Compute and write."""
    dpo_trainer.disable_gradient_checkpointing = lambda *_: contextlib.nullcontext()  # the models here have none
    data = inputs()
    tensors = dict(data)
    for name, settings in SETTINGS.items():
        tensors[f"{name}.loss"], tensors[f"{name}.gradient"] = golden(settings, data)
        print(f"{name:28s} {tensors[f'{name}.loss'].item():.12f}")
    GOLDENS.parent.mkdir(exist_ok=True)
    save_file(tensors, GOLDENS, metadata={"settings": json.dumps(SETTINGS)})


if __name__ == "__main__":
    main()
