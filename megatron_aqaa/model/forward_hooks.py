"""Modules whose weights are read without calling them."""

from __future__ import annotations

import torch


def wait_for_weights(module: torch.nn.Module) -> None:
    """Run what hangs before a module's forward: under `overlap_param_gather`, DDP waits there for its weights.

    Where an operator takes the weights of a module that is never called, the pass would go on with those of the step
    before, silently.
    """
    for hook in module._forward_pre_hooks.values():
        hook(module, ())
