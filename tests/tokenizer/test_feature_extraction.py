from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from megatron_aqaa.tokenizer.feature_extraction import FeatureConfig, frame_labels, write_features
from megatron_aqaa.tokenizer.feature_store import FeatureStore
from megatron_aqaa.tokenizer.features import FilterBank, pitch_octaves, prepare_waveform
from tests.tokenizer.tiny import speech, write_corpus


def test_each_utterance_is_stored_as_computed(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "speech", 5)
    seen: list[int] = []
    store = write_features(FeatureConfig(manifest, tmp_path / "features", 0, utterances_per_block=2), seen.append)
    assert seen == [0, 2, 4, 5]
    assert len(store) == 5 and store.lengths.tolist() == [48, 60, 72, 84, 96]
    samples, _ = soundfile.read(manifest.parent / "wav/3.wav", dtype="float32")
    waveform = prepare_waveform(torch.from_numpy(samples))
    got = store[3]
    np.testing.assert_array_equal(got.fbank, FilterBank()(waveform).numpy().astype(np.float16))
    np.testing.assert_array_equal(got.pitch, pitch_octaves(waveform).numpy().astype(np.float16))
    assert store.split("unseen_voice") == [3] and store.split("train") == [0, 1, 2, 4]
    every = np.concatenate([store[i].fbank for i in range(5)]).astype(np.float32)
    np.testing.assert_allclose(store.index["mean"], every.mean(0), rtol=1e-4, atol=1e-4)


def test_labels_are_taken_in_the_middle_of_a_frame() -> None:
    index = {"_": 0, "a": 1, "b": 2}
    # frames are centred on 5, 15, 25 … ms; stress marks do not count
    labels = frame_labels([(0.01, "'a"), (0.025, "b"), (0.026, ",a"), (0.05, "_")], index, 7)
    assert labels.tolist() == [0, 1, 2, 1, 1, 0, 0]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "speech", 5)
    whole = write_features(FeatureConfig(manifest, tmp_path / "whole", 0))
    config = FeatureConfig(manifest, tmp_path / "features", 0, utterances_per_block=2)

    def stop(done: int) -> None:
        if done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(config, stop)
    with pytest.raises(ValueError, match="no finished features"):
        len(FeatureStore(config.output))
    seen: list[int] = []
    store = write_features(config, seen.append)
    assert seen[0] == 2
    assert all(np.array_equal(a, b, equal_nan=True) for i in range(5) for a, b in zip(store[i], whole[i], strict=True))


def test_two_processes_give_the_same_files(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "speech", 4)
    for workers in (0, 2):
        write_features(FeatureConfig(manifest, tmp_path / str(workers), workers, utterances_per_block=2))
    for path in (tmp_path / "0").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()


def test_features_of_another_manifest_are_not_mixed(tmp_path: Path) -> None:
    write_features(FeatureConfig(write_corpus(tmp_path / "one", 2), tmp_path / "features", 0))
    with pytest.raises(ValueError, match="another manifest"):
        write_features(FeatureConfig(write_corpus(tmp_path / "two", 3), tmp_path / "features", 0))


def test_audio_that_does_not_fit_the_manifest_is_named(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "speech", 2)
    soundfile.write(manifest.parent / "wav/1.wav", speech(9, 2)[0], 16000)
    with pytest.raises(ValueError, match=r"wav/1.wav: 2 groups of 120 ms, by the manifest's duration_s 5"):
        write_features(FeatureConfig(manifest, tmp_path / "features", 0))


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.jsonl: no such manifest"):
        write_features(FeatureConfig(tmp_path / "none.jsonl", tmp_path / "features", 0))


def test_the_index_names_the_phones(tmp_path: Path) -> None:
    store = write_features(FeatureConfig(write_corpus(tmp_path / "speech", 4), tmp_path / "features", 0))
    assert store.phones == ["_", "a", "i", "s"]
    assert json.loads((tmp_path / "features" / "index.json").read_text())["phones"] == store.phones
    assert set(np.unique(store[0].phones)) <= {0, 1, 2, 3}
    assert store.texts[1] == "that makes four"


def rewrite(manifest: Path, change: Callable[[int, dict], None]) -> None:
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    for number, record in enumerate(records):
        change(number, record)
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_recordings_of_any_length_are_filled_up_to_whole_groups(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "speech", 2)
    samples = speech(9, 5)[0][: 4 * 1920 + 700]
    soundfile.write(manifest.parent / "wav/1.wav", samples, 16000, subtype="FLOAT")

    def change(number: int, record: dict) -> None:
        if number == 1:
            record["duration_s"] = len(samples) / 16000

    rewrite(manifest, change)
    store = write_features(FeatureConfig(manifest, tmp_path / "features", 0))
    assert store.lengths.tolist() == [48, 60]


def test_phones_are_given_to_all_or_to_none(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "speech", 3)
    rewrite(manifest, lambda number, record: record.pop("phones") if number == 2 else None)
    with pytest.raises(ValueError, match=r"manifest.jsonl:3: no phones, but other lines have them"):
        write_features(FeatureConfig(manifest, tmp_path / "features", 0))
    rewrite(manifest, lambda number, record: record.pop("phones", None))
    store = write_features(FeatureConfig(manifest, tmp_path / "features", 0))
    assert store.phones == [] and set(np.unique(store[0].phones)) == {255}


@pytest.mark.parametrize(("kind", "num_mels"), [("kaldi", 80), ("whisper", 128)])
def test_front_ends_of_the_released_tokenizer(tmp_path: Path, kind: str, num_mels: int) -> None:
    manifest = write_corpus(tmp_path / "speech", 2)
    config = FeatureConfig(manifest, tmp_path / "features", 0, front_end=kind)
    store = write_features(config)
    assert store.front_end == kind and store[1].fbank.shape == (60, num_mels)
    with pytest.raises(ValueError, match="another manifest or front end"):
        write_features(replace(config, front_end="filter_bank"))


def test_features_of_an_earlier_version_are_told(tmp_path: Path) -> None:
    config = FeatureConfig(write_corpus(tmp_path / "speech", 2), tmp_path / "features", 0)
    store = write_features(config)
    index = dict(store.index)
    del index["texts"]
    (tmp_path / "features" / "index.json").write_text(json.dumps(index))
    (tmp_path / "features" / "front_end").unlink()
    with pytest.raises(ValueError, match="features of an earlier version; delete the directory"):
        _ = FeatureStore(config.output).front_end
    with pytest.raises(ValueError, match="another manifest or front end; delete the directory"):
        write_features(config)
