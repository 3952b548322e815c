"""A codebook as one picture: how often its codes occur, and how many codes each phone has, and how pure they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_aqaa.evaluation.charts import COLORS
from megatron_aqaa.tokenizer.codebook_report import CodebookReport


def draw_codebook(report: CodebookReport, title: str, path: Path, color: str = "linguistic") -> None:
    """Write a PNG.

    Args:
        report: of the codebook.
        title: above the picture.
        path: of the PNG.
        color: name in `charts.COLORS`.
    """
    figure = Figure(figsize=(11, 6.4 if report.phones else 3.4), layout="constrained")
    figure.suptitle(title, fontsize=12, color=COLORS["ink"])
    rows = figure.subplots(2 if report.phones else 1, squeeze=False)[:, 0]
    _draw_use(rows[0], report, COLORS[color])
    if report.phones:
        _draw_phones(rows[1], report, COLORS[color])
    for axes in rows:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=COLORS["muted"])
    figure.savefig(path, dpi=110)


def _draw_use(axes: Axes, report: CodebookReport, color: str) -> None:
    """Sorted counts of both sets; a code that does not occur has no point."""
    for use, name, shade in ((report.trained, "trained voices", color), (report.held_out, "held out", COLORS["muted"])):
        counts = np.sort(np.asarray(use.counts))[::-1]
        label = f"{name}: {use.used} of {use.size} codes, perplexity {use.perplexity:.0f}"
        axes.plot(np.arange(1, use.used + 1), counts[: use.used], color=shade, linewidth=1.8, label=label)
    axes.set_yscale("log")
    axes.set_xlim(1, report.trained.size)
    axes.set_xlabel("codes, commonest first", fontsize=9)
    axes.set_ylabel("occurrences", fontsize=9)
    axes.legend(frameon=False, fontsize=9)


def _draw_phones(axes: Axes, report: CodebookReport, color: str) -> None:
    """A bar of each phone, as high as it has codes; the dark part is the share that they are right."""
    order, sizes, purities = codes_of_phones(report)
    axes.bar(range(len(order)), sizes, color=color, alpha=0.3, label="codes that mostly stand for the phone")
    axes.bar(range(len(order)), [s * p for s, p in zip(sizes, purities, strict=True)], color=color, label="× purity")
    axes.set_xticks(range(len(order)), [report.phones[i] for i in order], fontsize=8)
    axes.set_xlim(-0.7, len(order) - 0.3)
    axes.set_ylabel("codes", fontsize=9)
    axes.legend(frameon=False, fontsize=9)


def codes_of_phones(report: CodebookReport) -> tuple[list[int], list[int], list[float]]:
    """Phones that have codes, the richest first: their indices, numbers of codes, and mean purity by occurrence."""
    phones, counts = np.asarray(report.phone_of_code), np.asarray(report.trained.counts, float)
    right = counts * np.asarray(report.purity_of_code)
    sizes = [int((phones == i).sum()) for i in range(len(report.phones))]
    order = sorted((i for i, size in enumerate(sizes) if size), key=lambda i: -sizes[i])
    purities = [_ratio(right[phones == i], counts[phones == i]) for i in order]
    return order, [sizes[i] for i in order], purities


def _ratio(part: Sequence[float] | np.ndarray, whole: Sequence[float] | np.ndarray) -> float:
    return float(np.sum(part) / max(np.sum(whole), 1))
