"""The summary of a tokenized corpus: what it is made of, what was set aside, what it cost; as JSON and as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_aqaa.data.reject_kinds import kind_of
from megatron_aqaa.data.token_page import token_page
from megatron_aqaa.whole_file import write_json, write_whole


def write_summary(
    output: Path, report: Mapping[str, Any], rejects: Sequence[Mapping[str, Any]], took_s: float, resampler: str
) -> None:
    """Write `report.json`, and `summary.json` and `summary.html`, which also tell the time it took.

    Two runs of the same inputs give the same report, but not the same summary.

    Args:
        output: folder.
        report: of `token_report`.
        rejects: records of `rejects.jsonl`.
        took_s: processor time of all blocks; 0 if it was not noted.
        resampler: what the recordings passed through.
    """
    kinds: dict[str, dict[str, Any]] = {}
    for reject in rejects:
        kind = kinds.setdefault(kind_of(reject["audio"], reject["reason"]), {"count": 0, "first": reject["reason"]})
        kind["count"] += 1
    ordered = dict(sorted(kinds.items(), key=lambda item: (-item[1]["count"], item[0])))
    full = {**report, "rejected": len(rejects), "rejects": ordered}
    write_whole(output / "report.json", json.dumps(full))
    summary = {
        **full,
        "resampler": resampler,
        "processor_hours": took_s / 3600,
        "audio_seconds_per_core_second": 3600 * report["hours"] / took_s if took_s else None,
    }
    write_json(output / "summary.json", summary)
    write_whole(output / "summary.html", token_page(summary))
