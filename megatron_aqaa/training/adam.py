"""AdamW whose step count lives in the parameter group, as in Transformer Engine's and apex's fused Adam.

torch's AdamW keeps one `step` tensor per parameter. Megatron-Core 0.16.1 restores all of them from one shared
tensor, which torch then increments once per parameter: training diverges silently, one step after a resume.
A step per group cannot be shared by accident, needs no priming and is not lost when a checkpoint is resharded.
Where Transformer Engine or apex supplies the optimizer, this class is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.adamw import adamw


class Adam(torch.optim.AdamW):
    """AdamW with `group["step"]`; state of a parameter is `exp_avg` and `exp_avg_sq` alone.

    `state_dict()` shows the step beside each parameter as well, since Megatron reads it there.
    """

    @classmethod
    def adopt(cls, optimizer: torch.optim.AdamW) -> Adam:
        """Turn a fresh torch AdamW, as Megatron built it, into this class in place.

        Megatron names `torch.optim.AdamW` in the middle of its optimizer factory; changing the class of the
        object that it made is smaller than repeating the factory.
        """
        assert type(optimizer) is torch.optim.AdamW and not optimizer.state, "adopt a fresh torch.optim.AdamW"
        optimizer.__class__ = cls
        optimizer._prime()  # type: ignore[attr-defined]
        return optimizer  # type: ignore[return-value]

    def _prime(self) -> None:
        """Allocate the state now: Megatron's `state_dict` asserts on an optimizer that never stepped."""
        for group in self.param_groups:
            group.setdefault("step", 0)
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Skip torch's migration of old checkpoints, which expects a `step` beside every parameter."""
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; the count of a group without any stays."""
        assert closure is None, "closures are not supported"
        self._prime()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            states = [self.state[p] for p in parameters]
            adamw(
                parameters,
                [p.grad for p in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [torch.tensor(float(group["step"])) for _ in parameters],  # torch adds one to each of these
                fused=parameters[0].dtype == torch.float32,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            group["step"] += 1

    def state_dict(self) -> dict[str, Any]:
        """State in torch's layout, with each parameter's `step` filled in from its group."""
        content = super().state_dict()
        for group in content["param_groups"]:
            for index in group["params"]:
                if index in content["state"]:
                    content["state"][index] = {**content["state"][index], "step": torch.tensor(float(group["step"]))}
        return content

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Accepts this class's layout and torch's own; the step of a group is that of its parameters."""
        groups = [dict(group) for group in state_dict["param_groups"]]
        states = {index: dict(state) for index, state in state_dict["state"].items()}
        for group in groups:
            steps = {int(states[i].pop("step")) for i in group["params"] if "step" in states.get(i, {})}
            if len(steps) > 1:
                raise ValueError(f"optimizer state holds different steps in one group: {sorted(steps)}")
            group["step"] = steps.pop() if steps else int(group.get("step", 0))
        super().load_state_dict({"state": states, "param_groups": groups})
