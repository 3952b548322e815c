"""The summary of a tokenized corpus as one HTML file that needs no other."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from megatron_aqaa.data.svg_plot import bars, histogram

_TEMPLATE = Path(__file__).with_name("token_page.html")


def token_page(summary: Mapping[str, Any]) -> str:
    """The page of a `summary.json`."""
    speed, hours = summary["audio_seconds_per_core_second"], f"{summary['hours']:,.2f}"
    tiles = {
        "hours of speech": hours,
        "tokens": f"{summary['num_tokens']:,}",
        "recordings": f"{summary['recordings']:,}",
        "set aside": f"{summary['rejected']:,}",
        "processor hours": f"{summary['processor_hours']:,.2f}" if speed else "not noted",
        "times real time, per core": f"{speed:,.1f}" if speed else "not noted",
    }
    cards = (f'<div class="card tile"><span>{label}</span><b>{value}</b></div>' for label, value in tiles.items())
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        hours=hours,
        caption=_text(f"Two linguistic and three semantic codes every 120 ms. Resampler: {summary['resampler']}."),
        tiles="\n".join(cards),
        codebooks="\n".join(_codebook(name, summary[name]) for name in ("linguistic", "semantic")),
        lengths=bars(summary["lengths"], "length"),
        splits=_splits(summary["splits"]),
        rejects=_rejects(summary["rejects"]),
    )


def _text(text: str) -> str:
    """Escaped; names of files need not be UTF-8."""
    return html.escape(text.encode("utf-8", "backslashreplace").decode())


def _codebook(name: str, use: Mapping[str, Any]) -> str:
    facts = f"{use['used']:,} of {use['size']:,} codes occur, perplexity {use['perplexity']:,.0f}"
    accuracy = use.get("phone_accuracy", {})
    told = "".join(f"<br>code → phone {value:.3f}, {_text(split)}" for split, value in accuracy.items())
    return f'<div class="card"><h3>{name}</h3><p>{facts}{told}</p>{histogram(use["counts"], name)}</div>'


def _splits(splits: Mapping[str, Mapping[str, Any]]) -> str:
    rows = (
        (_text(split), f"{sums['recordings']:,}", f"{sums['with_text']:,}", f"{sums['hours']:,.2f}")
        for split, sums in splits.items()
    )
    return _table(("split", "recordings", "with text", "hours"), rows)


def _rejects(kinds: Mapping[str, Mapping[str, Any]]) -> str:
    if not kinds:
        return "<p>Nothing.</p>"
    rows = ((_text(kind), f"{found['count']:,}", _text(found["first"])) for kind, found in kinds.items())
    return _table(("why", "recordings", "the first"), rows) + "<p>All of them, by line: rejects.jsonl.</p>"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table whose columns between the first and a column of reasons are numbers."""
    kinds = ["", *("number" for _ in head[1:])]
    if head[-1] == "the first":
        kinds[-1] = "reason"
    top = "".join(f'<th class="{kind}">{name}</th>' for kind, name in zip(kinds, head, strict=True))
    body = ("".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, row, strict=True)) for row in rows)
    return f"<table><tr>{top}</tr>{''.join(f'<tr>{cells}</tr>' for cells in body)}</table>"
