"""Which frames of a padded batch there are, and how far ahead each of them may look."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FrameMask:
    """Frames of one level of a network.

    A frame sees the frames before it and those up to the end of its own chunk; with no boundaries there is one chunk,
    the whole. What a frame sees never depends on padding.

    Attributes:
        size: frames F of the batch, padding included.
        lengths: [B] int64 valid frames; None where all are.
        boundaries: first frames of all chunks but the first, rising, each in 1 … size − 1.
    """

    size: int
    lengths: Tensor | None = None
    boundaries: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        edges = (0, *self.boundaries, self.size)
        if any(left >= right for left, right in itertools.pairwise(edges)):
            raise ValueError(f"chunk boundaries {self.boundaries} must rise between 1 and {self.size - 1}")

    @property
    def is_plain(self) -> bool:
        """Whether every frame is valid and sees all others."""
        return self.lengths is None and not self.boundaries

    @cached_property
    def valid(self) -> Tensor | None:
        """[B, 1, F] bool; None where all are valid."""
        if self.lengths is None:
            return None
        return torch.arange(self.size, device=self.lengths.device) < self.lengths[:, None, None]

    def keep(self, x: Tensor) -> Tensor:
        """`x [B, C, F]` with zeros in the padding."""
        return x if self.valid is None else x.masked_fill(~self.valid, 0.0)

    def ends(self, device: torch.device) -> Tensor:
        """[F] int64: where the chunk of each frame ends."""
        edges = torch.tensor([*self.boundaries, self.size], device=device)
        return edges[torch.searchsorted(edges, torch.arange(self.size, device=device), right=True)]

    def attention(self, device: torch.device) -> Tensor | None:
        """[B or 1, 1, F or 1, F] bool: which frames (last) each frame (before last) sees; None: all."""
        seen = None if self.valid is None else self.valid[:, None]
        if not self.boundaries:
            return seen
        ahead = torch.arange(self.size, device=device) < self.ends(device)[:, None]
        return ahead[None, None] if seen is None else seen & ahead

    def counts(self, device: torch.device) -> Tensor:
        """[B or 1, F or 1] int64: how many valid frames each frame sees."""
        ends = self.ends(device) if self.boundaries else torch.tensor([self.size], device=device)
        return ends[None] if self.lengths is None else torch.minimum(ends, self.lengths[:, None])

    def halved(self) -> FrameMask:
        """Of every second frame.

        Raises:
            ValueError: a chunk begins at an odd frame, so that two chunks would share one.
        """
        odd = [boundary for boundary in self.boundaries if boundary % 2]
        if odd:
            raise ValueError(f"a chunk that begins at frame {odd[0]} cannot be halved; begin chunks at even frames")
        lengths = None if self.lengths is None else (self.lengths + 1) // 2
        return FrameMask((self.size + 1) // 2, lengths, tuple(boundary // 2 for boundary in self.boundaries))
