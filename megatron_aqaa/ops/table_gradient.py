"""The gradient of a table whose rows were looked up: the end of every embedding form's backward.

Where the table carries Megatron's `main_grad`, the rows are added straight into that buffer and no dense `[rows, H]`
gradient is ever filled; elsewhere they make an ordinary gradient.

Under `torch.compile` it is always the ordinary gradient: while a graph is traced a parameter is a stand-in without
`main_grad`, and a graph could not write to a buffer that is not among its inputs. Megatron's hook then adds it as it
adds any other gradient, so the result is the same at the price of the dense one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_aqaa.ops.accumulate_rows import accumulate_rows_
from megatron_aqaa.ops.main_grad import accumulates_in_main_grad, dummy_gradient


class Table(NamedTuple):
    """What backward must know of a table that was looked up in forward.

    Attributes:
        num_rows: its rows.
        dtype: its dtype, and that of an ordinary gradient.
        parameter: the table, if backward adds into its `main_grad`. Kept as it is and not as a saved tensor, because
            backward writes to its attributes.
    """

    num_rows: int
    dtype: torch.dtype
    parameter: Tensor | None

    @staticmethod
    def of(weight: Tensor) -> Table:
        """[rows, H]."""
        return Table(weight.shape[0], weight.dtype, weight if accumulates_in_main_grad(weight) else None)

    def add_gradient(self, gradient: Tensor, rows: Tensor, scale: float, deterministic: bool) -> Tensor:
        """Adds `scale * gradient[t]` to the gradient of row `rows[t]`.

        Args:
            gradient: [T, H].
            rows: [T] int64; negative ones are skipped.
            scale: factor on the sum.
            deterministic: see `accumulate_rows_`.

        Returns:
            [num_rows, H] for autograd: the gradient, or what stands for one that is already in `main_grad`.
        """
        if self.parameter is None:
            out = gradient.new_zeros(self.num_rows, gradient.shape[1], dtype=self.dtype)
        else:
            out = self.parameter.main_grad  # type: ignore[attr-defined]
        accumulate_rows_(out, gradient, rows, scale=scale, deterministic=deterministic)
        return out if self.parameter is None else dummy_gradient(self.parameter)
