from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from megatron_aqaa.data.manifest import read_recordings
from megatron_aqaa.data.speech_corpus import SpeechCorpusConfig, synthesize_corpus
from megatron_aqaa.data.speech_script import AssistantSettings, UserSettings, write_script

TINY = SpeechCorpusConfig(
    num_train=12,
    num_validation=4,
    num_unseen_voice=4,
    num_unseen_wording=4,
    user=UserSettings(voices=("m3", "f5"), unseen_voices=("whisper",)),
    assistant=AssistantSettings(num_train_takes=0, num_validation_takes=0),
    num_workers=0,
    utterances_per_block=5,
)


def digests(directory: Path) -> dict[str, str]:
    files = [directory / "manifest.jsonl", *sorted((directory / "wav").iterdir())]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("speech")
    synthesize_corpus(TINY, directory)
    return directory


def test_manifest_and_waves_agree(corpus: Path) -> None:
    script = write_script(TINY)
    records = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    assert len(records) == len(script) == 24
    for record, utterance in zip(records, script, strict=True):
        for key in ("id", "text", "speaker", "role", "split", "kind", "style", "answer"):
            assert record[key] == getattr(utterance, key)
        samples, rate_hz = soundfile.read(corpus / record["audio"], dtype="int16")
        info = soundfile.info(corpus / record["audio"])
        assert (rate_hz, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert len(samples) % 1920 == 0
        assert record["duration_s"] == len(samples) / 16000
        starts_s = [start_s for start_s, _ in record["phones"]]
        assert starts_s[0] == 0
        assert starts_s == sorted(set(starts_s))
        assert starts_s[-1] < record["duration_s"]
        assert record["phones"][-1][1] == "_"
        assert np.abs(samples).max() > 5000


def test_manifest_is_what_the_data_room_reads(corpus: Path) -> None:
    recordings = read_recordings(corpus / "manifest.jsonl")
    assert [recording.text for recording in recordings] == [utterance.text for utterance in write_script(TINY)]


def test_assistant_records_have_no_answer(tmp_path: Path) -> None:
    config = replace(TINY, num_train=0, num_validation=0, num_unseen_voice=0, num_unseen_wording=0)
    config = replace(config, assistant=AssistantSettings(num_train_takes=1, num_validation_takes=0))
    with pytest.raises(Enough):
        synthesize_corpus(config, tmp_path, stop_at(10))
    lines = next(iter((tmp_path / "blocks").iterdir())).read_text().splitlines()
    assert all("answer" not in json.loads(line) for line in lines)
    assert {json.loads(line)["role"] for line in lines} == {"assistant"}


def test_number_of_workers_does_not_matter(corpus: Path, tmp_path: Path) -> None:
    synthesize_corpus(replace(TINY, num_workers=2), tmp_path)
    assert digests(tmp_path) == digests(corpus)


class Enough(Exception):
    pass


def stop_at(count: int):
    def on_progress(done: int) -> None:
        if done >= count:
            raise Enough

    return on_progress


def test_interrupted_run_continues(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(Enough):
        synthesize_corpus(TINY, tmp_path, stop_at(10))
    assert not (tmp_path / "manifest.jsonl").exists()
    untouched = (tmp_path / "wav" / "000000.wav").stat().st_mtime_ns
    calls: list[int] = []
    synthesize_corpus(TINY, tmp_path, calls.append)
    assert calls == [10, 15, 20, 24]
    assert (tmp_path / "wav" / "000000.wav").stat().st_mtime_ns == untouched
    assert digests(tmp_path) == digests(corpus)


def test_a_lost_recording_is_made_again_alike(corpus: Path, tmp_path: Path) -> None:
    synthesize_corpus(TINY, tmp_path)
    (tmp_path / "wav" / "000007.wav").unlink()
    calls: list[int] = []
    synthesize_corpus(TINY, tmp_path, calls.append)
    assert calls == [19, 24]
    assert digests(tmp_path) == digests(corpus)
    calls.clear()
    synthesize_corpus(TINY, tmp_path, calls.append)
    assert calls == [24]


def test_other_settings_replace_what_they_affect(corpus: Path, tmp_path: Path) -> None:
    other = replace(TINY, user=replace(TINY.user, unseen_voices=("croak",)))
    synthesize_corpus(other, tmp_path)
    calls: list[int] = []
    synthesize_corpus(TINY, tmp_path, calls.append)
    assert calls == [19, 24]  # one block of five holds the unseen voice
    assert digests(tmp_path) == digests(corpus)
    assert len(list((tmp_path / "blocks").iterdir())) == 5


def test_seed_changes_everything(corpus: Path, tmp_path: Path) -> None:
    synthesize_corpus(replace(TINY, seed=1), tmp_path)
    before, after = digests(corpus), digests(tmp_path)
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unknown_voice(tmp_path: Path, num_workers: int) -> None:
    config = replace(TINY, num_workers=num_workers, user=UserSettings(voices=("nobody",), unseen_voices=("m1",)))
    with pytest.raises(ValueError, match="no variant 'nobody'"):
        synthesize_corpus(config, tmp_path)
