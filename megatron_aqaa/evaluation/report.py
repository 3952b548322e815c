"""The demo's report: one self-contained page made for looking and listening. What is missing is said to be missing.

Needs the extra `demo` (jinja2, matplotlib).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import soundfile

try:
    import jinja2
    from markupsafe import Markup
except ImportError as error:
    raise ImportError("the report needs jinja2: pip install 'megatron-aqaa[demo]'") from error

from megatron_aqaa.evaluation import charts, comparison
from megatron_aqaa.evaluation.judged import JudgedAnswer, dozen
from megatron_aqaa.evaluation.run_records import RunRecords, package_versions
from megatron_aqaa.evaluation.scores import ScoreCard

TILES = ("text_unseen_voice", "text_unseen_wording", "heard", "style")
MODALITIES = {"loss_text": "text", "loss_linguistic": "linguistic", "loss_semantic": "semantic"}
NETWORKS = (
    ("Linguistic tokenizer", "tokenizer/linguistic", "linguistic"),
    ("Semantic tokenizer", "tokenizer/semantic", "semantic"),
    ("Vocoder, tokens → mel", "vocoder/acoustic", "answer"),
    ("Vocoder, mel → waveform", "vocoder/generator", "answer"),
)
"""Title, directory of the log, colour."""


def write_report(run: Path, title: str = "First light") -> Path:
    """Write `<run>/report.html` from what lies in the run directory.

    Raises:
        ValueError: there is no such directory.
    """
    if not run.is_dir():
        raise ValueError(f"{run}: no such run directory; run `make demo` first")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("megatron_aqaa", "evaluation"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report_template.html").render(title=title, **_content(RunRecords(run)))
    path = run / "report.html"
    path.write_text(page)
    return path


def _content(records: RunRecords) -> dict[str, Any]:
    """Everything that the template shows."""
    answers, card, shown = records.answers(), records.scores(), dozen(records.answers())
    compared = comparison.load_stages(records.run)
    return {
        "lead": records.corpus_facts(),
        "tiles": [(card or ScoreCard())[name] for name in TILES],
        "model_facts": records.model_facts(),
        "architecture": Markup(resources.files("megatron_aqaa.evaluation").joinpath("architecture.svg").read_text()),
        "samples": [_sample(records.run, answer) for answer in shown],
        "num_answers": len(answers),
        "scores": card.scores if card else (),
        "styles": _styles(answers),
        "trained_stages": [stage.label for stage in compared],
        "comparison": comparison.rows(compared),
        "charts": list(_charts(records)),
        "codebooks": [_codebook(name, book) for name, book in records.codebooks().items()],
        "stages": _bars(records.stages()),
        "speed": records.speed(),
        "versions": package_versions(),
        "written": f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
    }


def _sample(run: Path, answer: JudgedAnswer) -> dict[str, Any]:
    paths = {"question": run / answer.question_audio, "answer": run / answer.answer_audio}
    waves = {who: soundfile.read(path, dtype="float32")[0] for who, path in paths.items()}
    longest = max(map(len, waves.values()))
    voices = [
        {
            "who": who,
            "duration_s": len(wave) / charts.SAMPLE_RATE_HZ,
            "width": round(100 * len(wave) / longest, 1),  # one time scale for both
            "picture": charts.spectrogram(wave, who),
            "audio": charts.data_address(paths[who].read_bytes(), "audio/wav"),
        }
        for who, wave in waves.items()
    ]
    tags = [answer.split.replace("_", " "), answer.speaker, *([] if answer.style == "neutral" else [answer.style])]
    return {**vars(answer), "voices": voices, "tags": tags}


def _styles(answers: list[JudgedAnswer]) -> list[dict[str, Any]]:
    """One row per style, neutral first."""
    by_style: dict[str, list[JudgedAnswer]] = {}
    for answer in sorted(answers, key=lambda answer: (answer.style != "neutral", answer.style)):
        by_style.setdefault(answer.style, []).append(answer)
    return [
        {
            "style": style,
            "n": len(group),
            "followed": None if style == "neutral" else mean(bool(answer.style_followed) for answer in group),
            "duration_s": median(answer.duration_s for answer in group),
            "pitch_hz": median(answer.pitch_hz for answer in group),
        }
        for style, group in by_style.items()
    ]


def _charts(records: RunRecords) -> Iterator[dict[str, Any]]:
    curves, boundary = records.language_model_curves(MODALITIES)
    note = "Loss per token by modality" + ("; dashed: SFT on spoken answers begins" if boundary else "")
    svg = charts.loss_chart(curves, {name: name for name in curves}, boundary, width=12.8) if curves else ""
    yield {"title": "Language model", "note": note, "svg": Markup(svg), "wide": True}
    for title, directory, color in NETWORKS:
        curve = records.curve(directory, "loss")
        svg = charts.loss_chart({title: curve}, {title: color}) if curve[0] else ""
        yield {"title": title, "note": "Training loss", "svg": Markup(svg), "wide": False}


def _codebook(name: str, book: dict[str, Any]) -> dict[str, Any]:
    counts = book["counts"]
    share = np.asarray([count for count in counts if count]) / sum(counts)
    return {
        "name": name,
        "size": len(counts),
        "used": len(share),
        "phone_accuracy": book.get("phone_accuracy", {}).get("unseen_voice"),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "map": charts.code_map(counts, name),
        "svg": Markup(charts.usage_chart(counts, name)),
    }


def _bars(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    longest = max((stage["seconds"] for stage in stages), default=1.0)
    return [{**s, "width": round(100 * s["seconds"] / longest, 1), "time": _time(s["seconds"])} for s in stages]


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
