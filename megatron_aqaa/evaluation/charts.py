"""Pictures of the report: curves as SVG that follows the page's colours, spectrograms and code maps as PNG.

Needs the extra `demo` (matplotlib).
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

try:
    import matplotlib
    from matplotlib import image, ticker
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("the report's charts need matplotlib: pip install 'megatron-aqaa[demo]'") from error

COLORS = {
    "text": "#5b6f8f",
    "linguistic": "#2f9e8f",
    "semantic": "#8a63c9",
    "question": "#3f7fc8",
    "answer": "#d0842c",
    "ink": "#24292e",
    "muted": "#6b7280",
    "line": "#dcd8ce",
}
"""The page's palette. A chart is drawn in these; in its SVG each becomes a CSS variable, so dark mode recolours it."""

SAMPLE_RATE_HZ = 16_000
_SPECTROGRAM_HOP = 128  # 8 ms a column
_SPECTROGRAM_FFT = 640
_MAX_POINTS = 240

Series = tuple[Sequence[float], Sequence[float]]


def loss_chart(
    curves: Mapping[str, Series], colors: Mapping[str, str], boundary: float | None = None, width: float = 6.4
) -> str:
    """Loss curves over steps as an SVG element.

    Args:
        curves: label → (steps, losses); drawn as a moving average.
        colors: label → name in `COLORS`.
        boundary: a step at which a second stage begins, drawn as a vertical line.
        width: inches; the page scales the chart to its place, so a wider one has smaller letters.
    """
    figure = Figure(figsize=(width, 2.9))
    axes = figure.subplots()
    ends: list[tuple[float, float, str]] = []
    for label, curve in curves.items():
        steps, losses = _smoothed(curve)
        color = COLORS[colors[label]]
        axes.plot(steps, losses, color=color, linewidth=1.8, label=label)
        ends.append((steps[-1], losses[-1], color))
    _label_ends(axes, ends)
    if boundary is not None:
        axes.axvline(boundary, color=COLORS["muted"], linewidth=1, linestyle=(0, (3, 3)))
    if len(curves) > 1:
        axes.legend(loc="upper right", frameon=False, fontsize=9, labelcolor=COLORS["ink"])
    axes.set_xlabel("step", fontsize=9)
    return _svg(figure, axes)


def usage_chart(counts: Sequence[int], color: str) -> str:
    """Occurrences of every code, most used first, on a logarithmic axis, as an SVG element."""
    figure = Figure(figsize=(3.9, 1.9))
    axes = figure.subplots()
    used = np.sort(np.asarray(counts))[::-1]
    rank = np.unique(np.linspace(0, len(used) - 1, min(len(used), 400)).astype(int))
    axes.fill_between(rank, 0.8, np.maximum(used[rank], 0.8), color=COLORS[color], linewidth=0, alpha=0.85)
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.set_ylim(bottom=0.8)
    axes.set_xlabel("codes, most used first", fontsize=9)
    return _svg(figure, axes)


def code_map(counts: Sequence[int], color: str) -> str:
    """A square with one cell per code, the darker the more often it occurs, as a PNG data address."""
    side = math.isqrt(len(counts) - 1) + 1
    cells = np.zeros(side * side)
    cells[: len(counts)] = np.log1p(counts)
    return _tinted_png(cells.reshape(side, side) / max(cells.max(), 1e-9), color)


def spectrogram(waveform: np.ndarray, color: str) -> str:
    """Mel-like picture of a 16 kHz waveform [N], 8 ms a column, low notes at the bottom, as a PNG data address."""
    padded = np.pad(waveform.astype(np.float64), _SPECTROGRAM_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _SPECTROGRAM_FFT)[::_SPECTROGRAM_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_SPECTROGRAM_FFT))) ** 2
    level_db = 10 * np.log10(power @ _bands() + 1e-10)
    level_db -= level_db.max()
    return _tinted_png(np.clip(1 + level_db.T[::-1] / 65, 0, 1) ** 1.5, color)


def data_address(content: bytes, mime: str) -> str:
    """Bytes as a `data:` address, so that the page needs no second file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _bands(num_bands: int = 96) -> np.ndarray:
    """Triangles [n_fft / 2 + 1, num_bands], equally spaced on the mel scale to 8 kHz."""
    top = 2595 * math.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    edges_hz = 700 * (10 ** (np.linspace(0, top, num_bands + 2) / 2595) - 1)
    bins_hz = np.linspace(0, SAMPLE_RATE_HZ / 2, _SPECTROGRAM_FFT // 2 + 1)[:, None]
    rising = (bins_hz - edges_hz[:-2]) / (edges_hz[1:-1] - edges_hz[:-2])
    falling = (edges_hz[2:] - bins_hz) / (edges_hz[2:] - edges_hz[1:-1])
    return np.maximum(np.minimum(rising, falling), 0)


def _tinted_png(strength: np.ndarray, color: str) -> str:
    """Strength [height, width] in 0 … 1 becomes the opacity of one colour: right on light and on dark paper."""
    tint = [int(COLORS[color][i : i + 2], 16) for i in (1, 3, 5)]
    pixels = np.empty((*strength.shape, 4), np.uint8)
    pixels[..., :3] = tint
    pixels[..., 3] = np.round(strength * 63) * 4  # 64 levels: a third of the bytes, no visible difference
    buffer = io.BytesIO()
    image.imsave(buffer, pixels, format="png")
    return data_address(buffer.getvalue(), "image/png")


def _smoothed(curve: Series) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MAX_POINTS` points of a moving average over a sixtieth of the curve, narrower towards its ends."""
    steps, values = (np.asarray(column, float) for column in curve)
    points = np.unique(np.linspace(0, len(steps) - 1, _MAX_POINTS).round().astype(int))
    reach = np.minimum(np.minimum(points, len(steps) - 1 - points), len(steps) // 120)
    sums = np.concatenate([[0.0], values.cumsum()])
    return steps[points], (sums[points + reach + 1] - sums[points - reach]) / (2 * reach + 1)


def _label_ends(axes: Axes, ends: list[tuple[float, float, str]]) -> None:
    """Write each curve's last value (x, y, colour) beside its end, apart from the others."""
    axes.set_ylim(bottom=0)
    gap, floor = 0.07 * axes.get_ylim()[1], -1.0
    for x, y, color in sorted(ends, key=lambda end: end[1]):
        floor = max(y, floor + gap)
        axes.annotate(f"{y:.2f}", (x, floor), (5, 0), textcoords="offset points", color=color, fontsize=9, va="center")


def _svg(figure: Figure, axes: Axes) -> str:
    """The figure as an SVG element in the page's colours and font."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(COLORS["line"])
    axes.tick_params(colors=COLORS["muted"], labelsize=9, length=3, color=COLORS["line"])
    axes.xaxis.label.set_color(COLORS["muted"])
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", color=COLORS["line"], linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "aqaa", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    return _themed(buffer.getvalue())


def _themed(svg: str) -> str:
    """Matplotlib's document as an element of the page: no fixed size, no ids or styles that leak, colours by name."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(?<=<svg) [^>]*(viewBox="[^"]*")[^>]*', r" \1", svg, count=1).replace("xlink:href", "href")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<style type="text/css">.*?</style>|(?<=<g) id="\w+"|(?<=font-family: )[^;"]*', _plain, svg)
    for name, value in COLORS.items():
        svg = svg.replace(value, f"var(--{name}, {value})")
    return svg


def _plain(match: re.Match[str]) -> str:
    return "" if match[0].startswith(("<", " ")) else "inherit"
