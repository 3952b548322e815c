"""How large the tensors are that a piece of code makes, one by one and all that it holds at a time."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class MadeTensors(TorchDispatchMode):
    """Watches every operation; views, and what only `torch.empty` made (the dummy gradient), are left out.

    Attributes:
        largest: elements of the largest tensor.
        most: elements of the tensors that were alive together, at their most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.most = 0
        self._alive: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        is_view = isinstance(out, Tensor) and out._is_view()
        if isinstance(out, Tensor) and not is_view and function is not torch.ops.aten.empty.memory_format:
            inputs = {x.data_ptr() for x in args if isinstance(x, Tensor)}
            if out.data_ptr() not in inputs:
                self._count(out)
        return out

    def _count(self, made: Tensor) -> None:
        self._alive = [*(ref for ref in self._alive if ref() is not None), weakref.ref(made)]
        self.largest = max(self.largest, made.numel())
        self.most = max(self.most, sum(tensor.numel() for ref in self._alive if (tensor := ref()) is not None))
