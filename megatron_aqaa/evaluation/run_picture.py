"""A training run as one picture: losses, rates, gradient norm, throughput and skipped steps over steps.

Needs the extra `demo` (matplotlib).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megatron_aqaa.evaluation.charts import COLORS

try:
    import matplotlib
    from matplotlib import ticker
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
except ImportError as error:
    raise ImportError("pictures of runs need matplotlib: pip install 'megatron-aqaa[demo]'") from error

Records = Sequence[Mapping[str, Any]]


class Panel(NamedTuple):
    """One chart.

    Attributes:
        field: of the log.
        title: above it.
        color: name in `COLORS`, where there is one run.
        logarithmic: y axis.
        exact: a schedule: no moving average.
    """

    field: str
    title: str
    color: str = "ink"
    logarithmic: bool = False
    exact: bool = False


PANELS = (
    Panel("loss", "loss"),
    Panel("loss_text", "loss, text", "text"),
    Panel("loss_linguistic", "loss, linguistic", "linguistic"),
    Panel("loss_semantic", "loss, semantic", "semantic"),
    Panel("margin", "reward margin", "answer"),
    Panel("accuracy", "share of pairs preferred rightly", "answer"),
    Panel("grad_norm", "gradient norm", "question", logarithmic=True),
    Panel("learning_rate", "learning rate", "question", exact=True),
    Panel("tokens_per_second", "tokens a second", "answer"),
    Panel("audio_seconds_per_second", "seconds of audio a second", "answer"),
    Panel("mfu", "model FLOPs utilization", "answer"),
    Panel("data_wait_seconds", "seconds a step waits for data", "muted"),
    Panel("memory_gib", "peak memory, GiB", "muted", exact=True),
)
_RUN_COLORS = ("question", "answer", "linguistic", "semantic", "text", "ink")
_COLUMNS = 4
_FAINT = 0.25
_SKIPPED = "#c0392b"


def read_log(run: Path) -> list[dict[str, Any]]:
    """Records of `<run>/log.jsonl` by step; where a resumed run repeats one, the last counts.

    Raises:
        ValueError: there is no log, or no step in it.
    """
    path = run / "log.jsonl"
    by_step: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # a killed run left it half-written
            continue
        earlier = {} if "loss" in record else by_step.get(record["step"], {})  # validation adds to its step
        by_step[record["step"]] = {**earlier, **record}
    if not any("loss" in record for record in by_step.values()):
        raise ValueError(f"{path}: no steps to draw; give the directory of a training run")
    return [by_step[step] for step in sorted(by_step)]


def draw_runs(runs: Mapping[str, Records], output: Path) -> None:
    """Write a picture of one run, or of several over each other.

    The faint line is every step, the other its moving average; in the loss panels dots are validation, and bars at the
    bottom are skipped steps.

    Args:
        runs: name → records from `read_log`.
        output: `.svg`, `.png` or `.pdf`.

    Raises:
        ValueError: the ending is another.
    """
    if output.suffix not in (".svg", ".png", ".pdf"):
        raise ValueError(f"{output}: a picture ends in .svg, .png or .pdf")
    panels = [p for p in PANELS if any(len(_series(records, p.field)[0]) for records in runs.values())]
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(3.6 * _COLUMNS, 2.5 * rows + 0.5), layout="constrained")
    places = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axes, panel in zip(places, panels, strict=False):
        for index, records in enumerate(runs.values()):
            color = panel.color if len(runs) == 1 else _RUN_COLORS[index % len(_RUN_COLORS)]
            _draw(axes, panel, records, COLORS[color])
        _finish(axes, panel)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    _name(figure, runs)
    output.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if output.suffix == ".svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "aqaa"}):  # the same picture is the same file
        figure.savefig(output, dpi=110, facecolor="white", metadata=metadata)


def _series(records: Records, field: str) -> tuple[np.ndarray, np.ndarray]:
    """Of the steps that counted: the loss of one that was skipped would flatten all others."""
    points = [(r["step"], r[field]) for r in records if r.get(field) is not None and "skipped" not in r]
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    return steps, values


def _draw(axes: Axes, panel: Panel, records: Records, color: str) -> None:
    steps, values = _series(records, panel.field)
    axes.plot(steps, values, color=color, linewidth=0.8, alpha=_FAINT)
    axes.plot(steps, values if panel.exact else _moving_average(values), color=color, linewidth=1.6)
    if not panel.field.startswith("loss"):
        return
    axes.plot(*_series(records, f"validation_{panel.field}"), "o", color=color, markersize=4)
    skipped = [r["step"] for r in records if "skipped" in r]
    axes.plot(skipped, [0.03] * len(skipped), "|", color=_SKIPPED, markersize=9, transform=axes.get_xaxis_transform())


def _moving_average(values: np.ndarray) -> np.ndarray:
    """Over a fortieth of the run around each point, or what there is of it."""
    index, reach = np.arange(len(values)), len(values) // 80
    first, stop = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    sums = np.concatenate([[0.0], values.cumsum()])
    return (sums[stop] - sums[first]) / (stop - first)


def _finish(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=10, color=COLORS["ink"], loc="left")
    if panel.logarithmic:
        axes.set_yscale("log")
        for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatted(ticker.LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(COLORS["line"])
    axes.tick_params(which="both", colors=COLORS["muted"], labelsize=8, length=3, color=COLORS["line"])
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.grid(axis="y", color=COLORS["line"], linewidth=0.6, alpha=0.7)


def _name(figure: Figure, runs: Mapping[str, Records]) -> None:
    """A line of legend for each run, with its last step and number of skipped steps."""
    lines = []
    for index, (name, records) in enumerate(runs.items()):
        skipped = max((r.get("skipped_steps", 0) for r in records), default=0)
        text = f"{name}: {int(records[-1]['step']):,} steps" + (f", {skipped} skipped" if skipped else "")
        color = COLORS["ink"] if len(runs) == 1 else COLORS[_RUN_COLORS[index % len(_RUN_COLORS)]]
        lines.append(Line2D([], [], color=color, linewidth=1.6, label=text))
    figure.legend(handles=lines, loc="outside upper left", ncols=2, frameon=False, labelcolor="linecolor", fontsize=11)
