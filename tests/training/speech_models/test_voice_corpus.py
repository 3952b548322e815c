"""Recordings end to end: waveform, frames and codes of a crop belong together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from megatron_aqaa.data.indexed import Documents, DocumentWriter
from megatron_aqaa.training.speech_models.voice_corpus import RandomCrops, VoiceCorpus, VoiceSelection, load_voice
from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.vocoder.frames import FrameAnalysis
from tests.tokenizer.tiny import write_corpus

VOCABULARY = Vocabulary.for_text(40)
NUM_UTTERANCES = 6  # lines 3 is an unseen voice; line i has 4 + i % 5 groups


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speech, and random tokens that fit it."""
    directory = tmp_path_factory.mktemp("voice") / "speech"
    write_corpus(directory, NUM_UTTERANCES)
    write_tokens(directory / "audio", [4 + i % 5 for i in range(NUM_UTTERANCES)])
    return directory


def write_tokens(prefix: Path, groups: list[int]) -> None:
    random = np.random.default_rng(0)
    starts = [VOCABULARY.linguistic_start] * 2 + [VOCABULARY.semantic_start] * 3
    with DocumentWriter(prefix, VOCABULARY) as writer:
        for count in groups:
            writer.add((random.integers(0, 1024, (count, 5)) + starts).ravel())


def selection(directory: Path, split: str = "train") -> VoiceSelection:
    return VoiceSelection(directory / "manifest.jsonl", role="user", split=split)


@pytest.fixture(scope="module")
def corpus(directory: Path) -> VoiceCorpus:
    return load_voice(selection(directory), FrameAnalysis(), directory / "audio", VOCABULARY)


def test_holds_the_selected_recordings(corpus: VoiceCorpus) -> None:
    assert corpus.lines == (0, 1, 2, 4, 5)
    assert corpus.starts.tolist() == [0, 4, 9, 15, 23, 27]
    assert len(corpus.waveform) == 27 * 1920
    assert corpus.frames.mel.shape == (1, 27 * 6, 80)
    assert corpus.codes is not None and corpus.codes.semantic.shape == (1, 27, 3)


def test_a_recording_is_its_file_and_its_tokens(corpus: VoiceCorpus, directory: Path) -> None:
    recording = corpus.recording(3)  # line 4
    samples, _ = soundfile.read(directory / "wav" / "4.wav", dtype="float32")
    torch.testing.assert_close(recording.waveform[0], torch.from_numpy(samples))
    torch.testing.assert_close(recording.frames.mel, FrameAnalysis()(recording.waveform).mel)
    token_ids = Documents(directory / "audio")[4].token_ids.reshape(-1, 5)
    assert recording.codes is not None
    assert np.array_equal(recording.codes.linguistic[0].numpy() + VOCABULARY.linguistic_start, token_ids[:, :2])
    assert np.array_equal(recording.codes.semantic[0].numpy() + VOCABULARY.semantic_start, token_ids[:, 2:])


def test_cuts_stay_aligned(corpus: VoiceCorpus) -> None:
    batch = corpus.cut(torch.tensor([3, 20]), 2)
    assert batch.codes is not None and corpus.codes is not None
    assert torch.equal(batch.waveform[1], corpus.waveform[20 * 1920 : 22 * 1920])
    assert torch.equal(batch.frames.octaves[1], corpus.frames.octaves[0, 20 * 6 : 22 * 6])
    assert torch.equal(batch.codes.linguistic[1], corpus.codes.linguistic[0, 20:22])


def test_crops_are_a_function_of_seed_and_step(corpus: VoiceCorpus) -> None:
    crops = RandomCrops(corpus, batch_size=4, num_groups=3)
    assert torch.equal(crops(7).waveform, crops(7).waveform)
    assert not torch.equal(crops(7).waveform, crops(8).waveform)
    assert not torch.equal(crops(7).waveform, replace(crops, seed=1)(7).waveform)
    with pytest.raises(ValueError, match="crops of 28 groups .* from 27 in all"):
        RandomCrops(corpus, batch_size=1, num_groups=28)


def test_limit_spreads_over_the_selection(directory: Path) -> None:
    assert load_voice(selection(directory), FrameAnalysis(), limit=2).lines == (0, 2)


def test_tokens_are_optional(directory: Path) -> None:
    assert load_voice(selection(directory), FrameAnalysis()).cut(torch.tensor([0]), 1).codes is None


def test_tokens_must_fit_the_recordings(directory: Path, tmp_path: Path) -> None:
    write_tokens(tmp_path / "audio", [4, 5, 6, 7, 7, 4])  # line 4 has 8 groups
    with pytest.raises(ValueError, match="sequence 4 holds 35 tokens, its recording has 8 groups"):
        load_voice(selection(directory), FrameAnalysis(), tmp_path / "audio", VOCABULARY)
    write_tokens(tmp_path / "few", [4, 5])
    with pytest.raises(ValueError, match="sequence 2 holds 0 tokens"):
        load_voice(selection(directory), FrameAnalysis(), tmp_path / "few", VOCABULARY)


def test_unusable_recordings_are_named(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no recording of role user and split test; splits: train, unseen_voice"):
        load_voice(selection(directory, "test"), FrameAnalysis())
    write_corpus(tmp_path / "short", 1)
    soundfile.write(tmp_path / "short" / "wav" / "0.wav", np.zeros(4000), 16000)
    with pytest.raises(ValueError, match="0.wav: 4000 samples are not a multiple of 1920"):
        load_voice(selection(tmp_path / "short"), FrameAnalysis())
