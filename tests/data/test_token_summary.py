"""The summary of a tokenized corpus, as numbers and as a page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from megatron_aqaa.audio.io import RESAMPLER
from megatron_aqaa.data.audio_tokens import TokenizeConfig, tokenize_manifest
from megatron_aqaa.data.svg_plot import bars, histogram
from tests.data.damaged_audio import write_damaged
from tests.tokenizer.tiny import speech, write_tokenizer

VOID = {"meta", "br"}


class Nesting(HTMLParser):
    """Checks that what is opened is closed, and collects the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five good recordings in two splits, three of them with text, and one of every kind of damage."""
    directory = tmp_path_factory.mktemp("summary")
    lines = []
    for number in range(5):
        soundfile.write(directory / f"{number}.wav", speech(number, (4, 12, 30, 600, 9)[number])[0], 16000)
        text = {"text": f"<{number}>"} if number < 3 else {}
        lines.append({"audio": f"{number}.wav", "split": "train" if number else "test", **text})
    lines += [{"audio": str(path)} for path in write_damaged(directory, 15)]
    (directory / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = TokenizeConfig(directory / "manifest.jsonl", write_tokenizer(directory), directory / "out", 0)
    assert tokenize_manifest(config) == 15
    return directory / "out"


def test_numbers(output: Path) -> None:
    summary = json.loads((output / "summary.json").read_text())
    report = json.loads((output / "report.json").read_text())
    assert {name: summary[name] for name in report} == report
    num_groups = 4 + 12 + 30 + 600 + 9
    assert (summary["recordings"], summary["rejected"], summary["num_tokens"]) == (5, 15, 5 * num_groups)
    assert summary["splits"]["test"] == {"hours": pytest.approx(4 * 0.12 / 3600), "recordings": 1, "with_text": 1}
    assert (summary["splits"]["train"]["recordings"], summary["splits"]["train"]["with_text"]) == (4, 2)
    assert {name: count for name, count in summary["lengths"].items() if count} == {
        "< 1 s": 1,
        "1–2 s": 2,
        "2–5 s": 1,
        "1–5 min": 1,
    }
    kinds = summary["rejects"]
    assert sum(kind["count"] for kind in kinds.values()) == 15 and "other" not in kinds
    assert next(iter(kinds)) == max(kinds, key=lambda kind: kinds[kind]["count"])
    assert {"too long", "too short", "truncated", "missing", "not a file", "NaN or infinite"} <= set(kinds)
    assert summary["resampler"] == RESAMPLER
    speed = 3600 * summary["hours"] / (3600 * summary["processor_hours"])
    assert summary["audio_seconds_per_core_second"] == pytest.approx(speed)


def test_the_page_stands_alone_and_shows_every_number(output: Path) -> None:
    page = (output / "summary.html").read_text()
    text = Nesting(page).text
    assert "http" not in page and "src=" not in page and "$" not in page
    for shown in ("3,275", "truncated", "too long", "linguistic", RESAMPLER):
        assert shown in text
    assert page.count("<svg") == 3


@pytest.mark.parametrize("counts", [[0] * 7, [1], [5, 0, 3], np.random.default_rng(0).poisson(3e5, 4096).tolist()])
def test_histograms_stay_within_their_frame(counts: list[int]) -> None:
    root = xml.fromstring(histogram(counts, "semantic"))
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    (area,) = [child for child in root if child.tag == "polygon"]
    points = [tuple(map(float, point.split(","))) for point in area.attrib["points"].split()]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    heights = [y for _, y in points[1:-2]]
    assert heights == sorted(heights), "the most used code comes first"
    floor = points[0][1]
    assert sum(y < floor for y in heights) == min(len(heights), sum(count > 0 for count in counts))


def test_bars_are_as_high_as_their_counts() -> None:
    root = xml.fromstring(bars({"a & b": 4, "c": 1, "d": 0}, "length"))
    heights = [float(child.attrib["height"]) for child in root if child.tag == "rect"]
    assert heights[0] == pytest.approx(4 * heights[1], rel=0.01) and heights[2] == 0
    assert "a & b" in "".join(root.itertext())
