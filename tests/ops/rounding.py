"""How far a scaled sum of a few rows may lie from its exact value: one rounding beside those of the sum."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_rounded_once(ours: Tensor, exact: Tensor, magnitude: Tensor) -> None:
    """Fails where `ours` is further from `exact` than a sum in fp32 (fp64 for fp64), rounded once, can be.

    Args:
        ours: any floating dtype.
        exact: fp64.
        magnitude: the same sum of the absolute values: its terms may cancel.
    """
    last, sums = torch.finfo(ours.dtype), torch.finfo(torch.promote_types(ours.dtype, torch.float32))
    # Up to three rows and a factor are three roundings; in fp64 `exact` has as many of its own.
    bound = last.eps / 2 * (exact.abs() + last.tiny) + 3 * sums.eps * magnitude
    assert ((ours.double() - exact).abs() <= bound).all()
