"""Selected answers: of several takes the shortest that follows its style, from the training split alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from megatron_aqaa.data.chat_records import ChatReader, ChatRecord
from megatron_aqaa.data.indexed import DocumentWriter
from megatron_aqaa.evaluation.answer_selection import SelectionConfig, num_takes, select_answers
from megatron_aqaa.vocabulary import Vocabulary
from tests.evaluation.test_preference_rules import tone

VOCABULARY = Vocabulary.for_text(24)
# style, seconds, groups, split: of the slow takes one is too quick, one longer than need be, one of another split
TAKES = [("neutral", 1.0, 4, "train"), ("slow", 1.0, 3, "train"), ("slow", 1.4, 6, "train"), ("slow", 1.4, 5, "train"),
         ("slow", 1.4, 4, "validation")]  # fmt: skip


def write_run(run: Path, takes: list[tuple[str, float, int, str]] = TAKES, num_questions: int = 6) -> Path:
    (run / "speech").mkdir(parents=True)
    (run / "tokenizer").mkdir()
    VOCABULARY.save(run / "tokenizer" / "vocabulary.yaml")
    records = [
        {"text": "it is blue", "role": "assistant", "style": s, "split": p, "duration_s": d} for s, d, _, p in takes
    ]
    styles = [("neutral", "slow")[i % 2] for i in range(num_questions)]
    asked = {"text": "the sky", "role": "user", "split": "train", "duration_s": 0.5, "answer": "it is blue"}
    records += [{**asked, "style": style} for style in styles]
    records.append({**asked, "split": "unseen_voice"})
    groups = [groups for _, _, groups, _ in takes] + [7] * (num_questions + 1)
    with DocumentWriter(run / "tokens" / "audio", VOCABULARY) as writer:
        for line, (record, count) in enumerate(zip(records, groups, strict=True)):
            record |= {"id": line, "audio": f"{line}.wav"}
            soundfile.write(run / "speech" / f"{line}.wav", tone(float(str(record["duration_s"])), 200), 16000)
            writer.add(([VOCABULARY.linguistic_start + line] * 2 + [VOCABULARY.semantic_start] * 3) * count)
    (run / "speech" / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def test_the_shortest_take_in_style_answers_every_question(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    counts = select_answers(SelectionConfig(run, run / "selected.jsonl"))
    assert counts == {"recordings": 4, "off_style": 1, "selected": 2, "conversations": 6}
    assert num_takes(SelectionConfig(run, run / "selected.jsonl")) == 4
    records = list(ChatReader("sft", VOCABULARY, spoken_answers=True).read(run / "selected.jsonl"))
    assert len(records) == 6
    for record in records:
        assert isinstance(record, ChatRecord)
        question, answer = record.messages
        assert answer.words == "it is blue"
        assert answer.audio[0].codes[0] in (0, 3)  # lines of the manifest, by construction
        assert len(answer.audio[0].codes) == 5 * (4 if answer.audio[0].codes[0] == 0 else 5)
        assert question.audio[0].transcript == "the sky"
    assert sum(record.messages[1].audio[0].codes[0] == 3 for record in records) == 3


def test_questions_are_drawn_from_training_without_repeats(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    first, second = (SelectionConfig(run, run / f"{seed}.jsonl", num_conversations=4, seed=seed) for seed in (0, 1))
    drawn = []
    for config in (first, second):
        select_answers(config)
        drawn.append([json.loads(line)["meta"]["question"] for line in config.output.read_text().splitlines()])
    assert all(len(set(ids)) == 4 and set(ids) <= set(range(5, 11)) for ids in drawn)
    assert drawn[0] != drawn[1]


def test_an_answer_that_no_take_gives_in_style_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, takes=TAKES[:2])
    with pytest.raises(ValueError, match="no take of 'it is blue' follows the style slow"):
        select_answers(SelectionConfig(run, run / "selected.jsonl"))


def test_progress_counts_recordings(tmp_path: Path) -> None:
    run, progress = write_run(tmp_path), list[int]()
    select_answers(SelectionConfig(run, run / "selected.jsonl"), progress.append)
    assert progress[-1] == 4 and np.all(np.diff(progress) > 0)
