"""Which layout of text and audio a language model was taught: noted beside the data sets of its run."""

from __future__ import annotations

from pathlib import Path

from megatron_aqaa.inference.training_data import records_of_training
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

    Raises:
        ValueError: the run learnt several layouts: the grammar of an answer can only follow one.
    """
    records = records_of_training(config_path)
    noted = {record["answer_format"] for record in records if "answer_format" in record}
    if len(noted) > 1:
        raise ValueError(
            f"{config_path}: the run was trained on several answer formats ({', '.join(sorted(noted))}) and answers "
            "in one; train it on data sets of one format"
        )
    return parse_answer_format(noted.pop()) if noted else AnswerFormat()
