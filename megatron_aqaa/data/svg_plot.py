"""Two plots as SVG elements that take their colours from the page around them."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_MAX_POINTS = 300
_ONCE = 0.15  # decades: a code that never occurs lies on the axis, one that occurs once stands out from it


@dataclass(frozen=True)
class _Frame:
    """A plot's room: x and y run from 0 to 1."""

    width: int
    height: int = 190
    left: int = 46
    top: int = 14
    bottom: int = 26

    def x(self, share: float) -> float:
        return round(self.left + share * (self.width - self.left), 1)

    def y(self, share: float) -> float:
        return round(self.height - self.bottom - share * (self.height - self.bottom - self.top), 1)

    def label(self, x: float, y: float, text: str, anchor: str = "middle") -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(text)}</text>'

    def svg(self, *parts: str) -> str:
        return f'<svg viewBox="0 0 {self.width} {self.height}" role="img">{"".join(parts)}</svg>'


def histogram(counts: Sequence[int], color: str) -> str:
    """Occurrences of every code, the most used first, on a logarithmic axis.

    Args:
        counts: of each code.
        color: name of a CSS variable of the page.
    """
    frame, ordered = _Frame(480), np.sort(np.asarray(counts))[::-1]
    decades = max(1, math.ceil(math.log10(max(1, int(ordered[0])))))
    ranks = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _MAX_POINTS)).astype(int))
    heights = [_height(int(ordered[rank]), decades) for rank in ranks]
    points = [(0.0, 0.0), *zip((ranks / len(ordered)).tolist(), heights, strict=True), (1.0, heights[-1]), (1.0, 0.0)]
    outline = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in points)
    lines = (_line(frame, 10**power, _height(10**power, decades)) for power in range(decades + 1))
    area = f'<polygon points="{outline}" style="fill: var(--{color}); fill-opacity: .8"/>'
    return frame.svg(
        *lines, area, frame.label(frame.x(0.5), frame.height - 6, f"{len(ordered):,} codes, most used first")
    )


def bars(counts: Mapping[str, int], color: str) -> str:
    """A bar for each name.

    Args:
        counts: name → height.
        color: name of a CSS variable of the page.
    """
    frame, most, parts = _Frame(980, left=0), max([*counts.values(), 1]), list[str]()
    for number, (name, count) in enumerate(counts.items()):
        left, right = (frame.x((number + share) / len(counts)) for share in (0.1, 0.9))
        top, floor, middle = frame.y(count / most), frame.y(0), frame.x((number + 0.5) / len(counts))
        size = f'width="{right - left:.1f}" height="{floor - top:.1f}"'
        parts.append(f'<rect x="{left}" y="{top}" {size} rx="2" style="fill: var(--{color})"/>')
        parts.append(frame.label(middle, round(top - 4, 1), f"{count:,}"))
        parts.append(frame.label(middle, frame.height - 8, name))
    return frame.svg(*parts)


def _height(count: int, decades: int) -> float:
    return (math.log10(count) + _ONCE) / (decades + _ONCE) if count else 0.0


def _line(frame: _Frame, value: int, height: float) -> str:
    y = frame.y(height)
    drawn = f'<line class="line" x1="{frame.left}" x2="{frame.width}" y1="{y}" y2="{y}"/>'
    short = f"{value:,}" if value < 100_000 else f"{value:.0e}".replace("+0", "")
    return drawn + frame.label(frame.left - 6, round(y + 4, 1), short, "end")
