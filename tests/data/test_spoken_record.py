"""Documents as sound: one file for each spoken segment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from megatron_aqaa.data.spoken_record import open_vocoder, save_speech, spoken_segments
from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.vocoder.group_repair import refuse
from tests.inference.tiny_run import make_run
from tests.vocoder.tiny_vocoder import VOCABULARY as V
from tests.vocoder.tiny_vocoder import random_ids, tiny_vocoder


def ids(*parts: object) -> np.ndarray:
    return np.concatenate([np.atleast_1d(np.asarray(part, np.int64)) for part in parts])


def test_segments_begin_with_their_marker_and_leave_text_out() -> None:
    question, answer = random_ids(4), random_ids(7, seed=1)
    interleaved = [V.audio_start, *answer[:15], 10, 11, *answer[15:], V.audio_end]
    token_ids = ids(V.bos, 8, V.audio_start, question, V.audio_end, 9, interleaved, V.eot)
    found = spoken_segments(token_ids, V)
    assert [segment.tolist() for segment in found] == [question.tolist(), answer.tolist()]
    assert [segment.tolist() for segment in spoken_segments(question, V)] == [question.tolist()]
    assert spoken_segments(ids(V.bos, 5, V.eot), V) == spoken_segments(ids(V.pad), V) == []


def test_every_segment_becomes_a_file(tmp_path: Path) -> None:
    vocoder, first, second = tiny_vocoder(), random_ids(4), random_ids(7, seed=1)
    token_ids = ids(V.audio_start, first, V.audio_end, V.audio_start, second, V.audio_end)
    written = list(save_speech(token_ids, tmp_path / "new" / "r.x", vocoder, refuse))
    assert [path.name for path, _ in written] == ["r.x_1.wav", "r.x_2.wav"]
    assert [seconds for _, seconds in written] == pytest.approx([0.48, 0.84])
    samples, rate_hz = soundfile.read(written[1][0])
    wanted = vocoder.synthesize(second)
    assert rate_hz == vocoder.sample_rate_hz
    torch.testing.assert_close(torch.from_numpy(samples).float(), wanted.clamp(-1, 1), atol=1 / 32767, rtol=0)
    ((path, _),) = save_speech(first, tmp_path / "alone", vocoder, refuse)
    assert path.name == "alone.wav"


def test_the_vocoder_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    own = Vocabulary.load(run / "tokenizer" / "vocabulary.yaml")
    assert open_vocoder(run, own).vocabulary == open_vocoder(run / "vocoder", own).vocabulary == own
    with pytest.raises(ValueError, match=f"audio ids from {own.linguistic_start}; those of the data begin at 65536"):
        open_vocoder(run, Vocabulary())
