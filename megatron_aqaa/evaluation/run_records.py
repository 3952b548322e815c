"""What the stages of a run left behind, read leniently: a missing file is no error here, but an empty answer."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from megatron_aqaa.evaluation.judged import JudgedAnswer, load_judged
from megatron_aqaa.evaluation.scores import ScoreCard

PACKAGES = ("torch", "megatron-core", "numpy", "sentencepiece", "espeakng-loader", "pocketsphinx", "soxr", "soundfile")

Curve = tuple[list[float], list[float]]


class RunRecords:
    """Read access to the records below a run directory."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def answers(self) -> list[JudgedAnswer]:
        """Judged spoken answers."""
        path = self.run / "evaluation" / "samples.jsonl"
        return load_judged(path) if path.exists() else []

    def scores(self) -> ScoreCard | None:
        """Scores, if there are any."""
        path = self.run / "evaluation" / "scores.json"
        return ScoreCard.load(path) if path.exists() else None

    def curve(self, directory: str, key: str) -> Curve:
        """(steps, values) of `key` in `<directory>/log.jsonl`; a resumed run repeats steps, the last counts."""
        points = {r["step"]: r[key] for r in _json_lines(self.run / directory / "log.jsonl") if r.get(key) is not None}
        return list(points), list(points.values())

    def language_model_curves(self, keys: Mapping[str, str]) -> tuple[dict[str, Curve], float | None]:
        """Pre-training and SFT one after the other: label → curve, and the step at which SFT begins.

        Args:
            keys: log key → label.
        """
        steps = self.curve("pretrain", "step")[0]
        boundary = max(steps, default=0)
        curves = {}
        for key, label in keys.items():
            before, after = self.curve("pretrain", key), self.curve("sft", key)
            joined = before[0] + [step + boundary for step in after[0]], before[1] + after[1]
            if joined[0]:
                curves[label] = joined
        return curves, boundary or None

    def corpus_facts(self) -> str:
        """A sentence on the speech that the run was trained on: its train split."""
        records = [r for r in _json_lines(self.run / "speech" / "manifest.jsonl") if r["split"] == "train"]
        if not records:
            return ""
        hours = sum(record["duration_s"] for record in records) / 3600
        voices = len({record["speaker"] for record in records if record["role"] == "user"})
        size = f"{len(records):,} utterances, {voices} asking voices"
        return f"Trained from nothing on {hours:.1f} hours of synthetic speech: {size}."

    def model_facts(self) -> str:
        """A sentence on the language model, from its saved configuration."""
        path = self.run / "sft" / "config.yaml"
        if not path.exists():
            return ""
        config = yaml.safe_load(path.read_text())
        model, ranks = config["model"], config.get("parallel", {}).get("tensor_model_parallel_size", 1)
        shape = f"{model['num_layers']} layers × {model['hidden_size']}"
        processes = f"{ranks} tensor-parallel processes" if ranks > 1 else "one process"
        return f"Language model: {shape} on Megatron-Core, trained in {processes}."

    def codebooks(self) -> dict[str, dict[str, Any]]:
        """Codebook → its part of the token report: `counts` of every code, `phone_accuracy` by split if measured."""
        path = self.run / "tokens" / "report.json"
        report = json.loads(path.read_text()) if path.exists() else {}
        return {name: report[name] for name in ("linguistic", "semantic") if name in report}

    def speed(self) -> dict[str, float] | None:
        """How soon answers are heard: the fields of `AnsweringSpeed`."""
        path = self.run / "evaluation" / "speed.json"
        return json.loads(path.read_text()) if path.exists() else None

    def stages(self) -> list[dict[str, Any]]:
        """Finished stages, in the order in which they ended: name, seconds, status."""
        paths = sorted((self.run / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime)
        return [json.loads(path.read_text()) for path in paths]


def package_versions() -> list[tuple[str, str]]:
    """Machine, Python and the packages that matter."""
    rows = [("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")]
    rows.append(("Python", platform.python_version()))
    return rows + [(package, _version(package)) for package in PACKAGES]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a log; a line that a killed run left half-written is passed over."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
