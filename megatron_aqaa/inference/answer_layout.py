"""Which layout of text and audio a language model was taught: noted beside the data sets of its run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from megatron_aqaa.data.finished import record_of
from megatron_aqaa.vocabulary import AnswerFormat


def parse_answer_format(text: str) -> AnswerFormat:
    """Read what `str(AnswerFormat)` writes: `10:15`, `text_first` or `audio_only`.

    Raises:
        ValueError: neither, or chunks that make no answer.
    """
    text_chunk, colon, audio_chunk = text.partition(":")
    if not colon:
        return AnswerFormat(layout=text)  # type: ignore[arg-type]  # checked there
    if not (text_chunk.isdecimal() and audio_chunk.isdecimal()):
        raise ValueError(f"answer format {text!r}: expected two numbers as in 10:15, text_first or audio_only")
    return AnswerFormat(int(text_chunk), int(audio_chunk))


def taught_answer_format(config_path: Path) -> AnswerFormat:
    """The layout in the training data of the run whose `config.yaml` this is; 10:15 where none is noted.

    Data sets are looked for where the run was trained, then where they lie now if the run was moved with its data.

    Raises:
        ValueError: the run learnt several layouts: the grammar of an answer can only follow one.
    """
    config: dict[str, Any] = yaml.safe_load(config_path.read_text())
    records = map(record_of, _prefixes(config, config_path.parent))
    noted = {record["answer_format"] for record in records if "answer_format" in record}
    if len(noted) > 1:
        raise ValueError(
            f"{config_path}: the run was trained on several answer formats ({', '.join(sorted(noted))}) and answers "
            "in one; train it on data sets of one format"
        )
    return parse_answer_format(noted.pop()) if noted else AnswerFormat()


def _prefixes(config: dict[str, Any], run: Path) -> list[Path]:
    data = config.get("data", {})
    directory = Path(data.get("directory", "."))
    if not directory.is_dir() and "run" in config:
        directory = run / os.path.relpath(directory, config["run"])
    return [directory / prefix for prefix in data.get("train", {})]
