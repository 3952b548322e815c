"""The layout of answers is read from the data of the run, by whoever answers with its model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_aqaa.data.finished import finish
from megatron_aqaa.inference.answer_layout import parse_answer_format, taught_answer_format
from megatron_aqaa.inference.answerer import SpokenAnswerer
from megatron_aqaa.vocabulary import AnswerFormat
from tests.inference.tiny_run import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


def note_data(run: Path, formats: dict[str, str | None], directory: Path | None = None) -> Path:
    """Let the SFT of `run` have learnt from data sets of these formats; returns its config file."""
    for name, answer_format in formats.items():
        record = {"documents": 0, **({"answer_format": answer_format} if answer_format else {})}
        finish(run / "data" / name, "digest", record)
    path = run / "sft" / "config.yaml"
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    config["data"] = {"directory": str(directory or run / "data"), "train": dict.fromkeys(formats, 1.0)}
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize(
    "answer_format",
    [AnswerFormat(), AnswerFormat(6, 50), AnswerFormat(layout="text_first"), AnswerFormat(layout="audio_only")],
    ids=str,
)
def test_reading_undoes_writing(answer_format: AnswerFormat) -> None:
    assert parse_answer_format(str(answer_format)) == answer_format


@pytest.mark.parametrize(
    ("text", "said"),
    [("10:x", "expected two numbers"), ("10:7", "audio_chunk = 7"), ("sideways", "layout = 'sideways'")],
)
def test_what_is_no_format_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_answer_format(text)


@pytest.mark.parametrize("name", ["3:5", "text_first", "audio_only"])
def test_an_answerer_follows_the_layout_that_its_model_was_taught(run: Path, tmp_path: Path, name: str) -> None:
    taught = shutil.copytree(run, tmp_path / "run")
    note_data(taught, {"sft/train": name, "sft/other": None})
    with SpokenAnswerer.load(taught) as answerer:
        assert str(answerer.engine.answer_format) == str(answerer.template.answer_format) == name


def test_a_layout_that_is_asked_for_wins(run: Path, tmp_path: Path) -> None:
    taught = shutil.copytree(run, tmp_path / "run")
    note_data(taught, {"train": "3:5"})
    with SpokenAnswerer.load(taught, answer_format=AnswerFormat(2, 5)) as answerer:
        assert answerer.engine.answer_format == AnswerFormat(2, 5)


def test_a_run_that_was_moved_finds_its_data(run: Path, tmp_path: Path) -> None:
    trained = shutil.copytree(run, tmp_path / "before")
    path = note_data(trained, {"train": "6:50"})
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**config, "run": str(trained / "sft")}))
    moved = trained.rename(tmp_path / "after")
    assert taught_answer_format(moved / "sft" / "config.yaml") == AnswerFormat(6, 50)


def test_nothing_noted_is_the_published_layout(run: Path, tmp_path: Path) -> None:
    taught = shutil.copytree(run, tmp_path / "run")
    assert taught_answer_format(taught / "sft" / "config.yaml") == AnswerFormat()  # no section `data`
    assert taught_answer_format(note_data(taught, {"train": None})) == AnswerFormat()


def test_two_layouts_are_refused(run: Path, tmp_path: Path) -> None:
    path = note_data(shutil.copytree(run, tmp_path / "run"), {"a": "10:15", "b": "text_first"})
    with pytest.raises(ValueError, match=r"several answer formats \(10:15, text_first\)"):
        taught_answer_format(path)
