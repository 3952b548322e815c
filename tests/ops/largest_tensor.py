"""What the largest tensor was that a piece of code made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation made; what only `torch.empty` made is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        is_view = isinstance(out, Tensor) and out._is_view()
        if isinstance(out, Tensor) and not is_view and function is not torch.ops.aten.empty.memory_format:
            inputs = {x.data_ptr() for x in args if isinstance(x, Tensor)}
            if out.data_ptr() not in inputs:
                self.elements = max(self.elements, out.numel())
        return out
