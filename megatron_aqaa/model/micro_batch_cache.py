"""Keeps what all layers of a micro-batch share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class MicroBatchCache(Generic[Made]):
    """The result of `make(query, num_keys, document_ids)`, made anew when shapes, dtype, device or ids change.

    The first layer pays: a bias costs about as much as one layer's softmax. Of `query` only the shape, dtype and device
    may be used.

    Ids on the CPU are compared by value: recomputation hands over another tensor object, and a loader may reuse its
    buffer. On a GPU that would make the host wait for the device in every layer, so memory and version are compared
    there; ids that were made in inference mode carry no version and are taken as never written to again.
    """

    def __init__(self, make: Callable[[Tensor, int, Tensor | None], Made]) -> None:
        self._make = make
        self._kept: tuple[tuple[object, ...], _Ids | None, Made] | None = None

    @torch.inference_mode(False)  # what is kept may serve training next, which cannot save inference tensors
    def __call__(self, query: Tensor, num_keys: int, document_ids: Tensor | None) -> Made:
        """For query [Sq, B, heads, D], Sk keys, and document_ids [B, Sk] or None."""
        shapes = (*query.shape[:2], num_keys, query.dtype, query.device)
        if self._kept is None or self._kept[0] != shapes or not _unchanged(self._kept[1], document_ids):
            ids = None if document_ids is None else _Ids.of(document_ids)
            self._kept = shapes, ids, self._make(query, num_keys, document_ids)
        return self._kept[2]


class _Ids(NamedTuple):
    """Document ids as they were; `tensor` keeps their memory from being given to others."""

    tensor: Tensor
    mark: tuple[object, ...]
    values: Tensor | None

    @classmethod
    def of(cls, ids: Tensor) -> _Ids:
        return cls(ids, _mark(ids), ids.clone() if ids.device.type == "cpu" else None)


def _mark(ids: Tensor) -> tuple[Any, ...]:
    return ids.data_ptr(), ids.shape, ids.stride(), 0 if ids.is_inference() else ids._version


def _unchanged(kept: _Ids | None, ids: Tensor | None) -> bool:
    if kept is None or ids is None:
        return kept is None and ids is None
    return torch.equal(kept.values, ids) if kept.values is not None else kept.mark == _mark(ids)
