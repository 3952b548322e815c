from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_aqaa.data.indexed import Documents, DocumentWriter
from megatron_aqaa.data.manifest import select
from megatron_aqaa.data.pretraining import PRETRAINING_TASKS, SpeechTokens, pretraining_document, pretraining_recordings
from tests.data.tiny_corpus import Corpus, make_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_layout_of_every_task(corpus: Corpus) -> None:
    v, question, answer = corpus.vocabulary, corpus.find("user"), corpus.find("assistant")
    groups = corpus.tokens.audio.get(question.line).tolist()
    assert len(groups) == 5 * (4 + question.line % 5)
    segment, words = [v.audio_start, *groups, v.audio_end], corpus.text.encode(question.text)
    made = {task: pretraining_document(task, question, corpus.tokens) for task in PRETRAINING_TASKS}
    assert made["continuation"] == [v.bos, *segment, v.eot]
    assert made["asr"] == [v.bos, *segment, *words, v.eot]
    assert made["tts"] == [v.bos, *words, *segment, v.eot]
    assert made["text"] == [v.bos, *corpus.text.encode(f"{question.text}\n{question.answer}"), v.eot]
    assert corpus.text.decode(made["text"]).split("\n")[1].strip() == question.answer
    assert pretraining_document("text", answer, corpus.tokens) == [v.bos, *corpus.text.encode(answer.text), v.eot]


def test_interleaved_is_ten_text_to_fifteen_audio(corpus: Corpus) -> None:
    v, recording = corpus.vocabulary, next(r for r in corpus.recordings if r.text == "the opposite is cold")
    words, groups = corpus.text.encode(recording.text), corpus.tokens.audio.get(recording.line).tolist()
    assert 10 < len(words) < 20 and len(groups) > 15
    expected = [v.bos, *words[:10], v.audio_start, *groups[:15], *words[10:], *groups[15:], v.audio_end, v.eot]
    assert pretraining_document("interleaved", recording, corpus.tokens) == expected


def test_every_wording_is_one_text_document(corpus: Corpus) -> None:
    users = select(corpus.recordings, "train", ("user",))
    assert len(users) == 8
    assert sorted(r.text for r in pretraining_recordings("text", users)) == sorted({r.text for r in users})
    assert pretraining_recordings("asr", users) == users


def test_tasks_that_need_words_pass_over_recordings_without(corpus: Corpus) -> None:
    silent = [replace(r, text="") if r.line % 2 else r for r in corpus.recordings]
    spoken = [r for r in silent if r.text]
    assert pretraining_recordings("continuation", silent) == silent
    for task in ("asr", "tts", "interleaved"):
        assert pretraining_recordings(task, silent) == spoken
    assert pretraining_recordings("text", [r for r in silent if not r.text]) == []


def test_an_unknown_task_is_named(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="unknown pre-training task 'ars'; known: continuation, asr"):
        pretraining_recordings("ars", corpus.recordings)


@pytest.mark.parametrize("token_ids", [[70, 71, 72], [0, 1, 2, 3, 4]])
def test_tokens_that_are_no_groups_are_named(corpus: Corpus, tmp_path: Path, token_ids: list[int]) -> None:
    with DocumentWriter(tmp_path / "audio", corpus.vocabulary) as writer:
        writer.add(np.array(token_ids))
    damaged = SpeechTokens(Documents(tmp_path / "audio").tokens, corpus.text, corpus.vocabulary)
    with pytest.raises(ValueError, match=f"line 1: its {len(token_ids)} tokens are not whole audio groups"):
        pretraining_document("asr", corpus.recordings[0], damaged)
    with pytest.raises(ValueError, match="line 2: only 1 recordings have tokens"):
        pretraining_document("asr", corpus.recordings[1], damaged)
