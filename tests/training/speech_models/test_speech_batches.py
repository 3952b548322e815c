"""Batches of the full-size vocoder: pure functions of their number, aligned, and clear about what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from megatron_aqaa.audio.io import load_waveform
from megatron_aqaa.data.audio_loading.batch_plan import Batching
from megatron_aqaa.data.audio_tokens import TokenizeConfig, tokenize_manifest
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.training.speech_models.speech_batches import SoundAnalysis, SoundCrops, TokenizedRecordings, chosen
from megatron_aqaa.training.speech_models.voice_corpus import VoiceSelection
from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.vocoder.cosyvoice.flow_model import WIDE_MEL, FlowConfig
from megatron_aqaa.vocoder.cosyvoice.token_ids import flow_tokens
from tests.tokenizer.tiny import write_corpus, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    manifest = write_corpus(folder / "speech", 8)
    (folder / "tokenizer").mkdir()
    write_tokenizer(folder / "tokenizer")
    tokenize_manifest(TokenizeConfig(manifest, folder / "tokenizer", folder / "tokens", num_workers=0))
    return folder


def selection(folder: Path, split: str = "train") -> VoiceSelection:
    return VoiceSelection(folder / "speech" / "manifest.jsonl", "user", split)


def recordings(folder: Path, max_batch_s: float = 2.0) -> TokenizedRecordings:
    vocabulary = Vocabulary.load(folder / "tokenizer" / "vocabulary.yaml")
    batching = Batching(max_batch_s=max_batch_s, num_buckets=2)
    return TokenizedRecordings(selection(folder), folder / "tokens" / "audio", vocabulary, FlowConfig(), batching)


def test_crops_are_functions_of_their_number(folder: Path) -> None:
    first, second = (SoundCrops(selection(folder), WIDE_MEL, 3, 5120, seed=1) for _ in range(2))
    for number in (0, 5, 5):
        for one, two in zip(first(number), second(number), strict=True):
            assert torch.equal(one, two)
    assert not torch.equal(first(0).waveform, first(1).waveform)
    batch = first(0)
    assert (batch.waveform.shape, batch.mel.shape, batch.f0_hz.shape) == ((3, 5120), (3, 20, 80), (3, 20))


def test_a_crop_lies_in_a_recording(folder: Path) -> None:
    crops = SoundCrops(selection(folder), WIDE_MEL, 2, 5120)
    sound = [load_waveform(recording.audio, 22050).numpy() for recording in chosen(selection(folder))]
    for crop in crops(3).waveform.numpy():
        views = [np.lib.stride_tricks.sliding_window_view(waveform, 5120) for waveform in sound]
        assert any((view[:, ::512] == crop[::512]).all(axis=1).any() for view in views)


def test_short_recordings_are_followed_by_silence(folder: Path) -> None:
    batch = SoundCrops(selection(folder), WIDE_MEL, 2, 256 * 100)(0)
    assert batch.waveform.shape == (2, 25600)
    assert not batch.waveform[:, -2000:].any() and not batch.f0_hz[:, -5:].any()


def test_pitch_of_a_hum() -> None:
    time = torch.arange(22016) / 22050
    hum = sum(torch.sin(2 * torch.pi * 147 * k * time) / k for k in range(1, 10))[None] * 0.2
    f0_hz = SoundAnalysis(WIDE_MEL)(hum).f0_hz[0, 5:-5]
    torch.testing.assert_close(f0_hz, torch.full_like(f0_hz, 147.0), rtol=0.01, atol=0)


def test_tokenized_recordings_come_whole_and_aligned(folder: Path) -> None:
    source = recordings(folder)
    documents, vocabulary = Documents(folder / "tokens" / "audio"), source.spoken.vocabulary
    for index, recording in enumerate(source.recordings):
        spoken = source.one(index)
        assert torch.equal(spoken.tokens, flow_tokens(documents[recording.line].token_ids, vocabulary))
        assert len(spoken.mel) == FlowConfig().num_frames(len(spoken.tokens))
        waveform = load_waveform(recording.audio, 22050)
        frame = source.spoken.log_mel(waveform[None, 5 * 256 : 20 * 256])[0, :, 5]  # frame 10, far from both ends
        torch.testing.assert_close(spoken.mel[10], frame)


def test_columns(folder: Path) -> None:
    vocabulary = Vocabulary.load(folder / "tokenizer" / "vocabulary.yaml")
    model = FlowConfig(token_form="columns", chunk_tokens=(15,))
    prefix = folder / "tokens" / "audio"
    spoken = TokenizedRecordings(selection(folder), prefix, vocabulary, model, Batching()).one(0)
    flat = recordings(folder).one(0)
    assert spoken.tokens.shape == (len(flat.tokens) // 5 * 3, 2)
    assert spoken.tokens[:2, 0].tolist() == flat.tokens[:2].tolist() and spoken.tokens[2, 0] == -1
    assert abs(len(spoken.mel) - len(flat.mel)) <= 2
    torch.testing.assert_close(spoken.mel[:20], flat.mel[:20])


def test_an_epoch_holds_every_recording_once_and_the_next_one_too(folder: Path) -> None:
    source = recordings(folder)
    sizes = [len(source.plan.epoch(epoch)) for epoch in (0, 1)]
    for start, stop in ((0, sizes[0]), (sizes[0], sum(sizes))):
        batches = [source(number) for number in range(start, stop)]
        lengths = [batch.tokens.lengths for batch in batches]
        found = sorted(
            length
            for batch, known in zip(batches, lengths, strict=True)
            for length in (known.tolist() if known is not None else [batch.tokens.tokens.shape[1]] * len(batch.mel))
        )
        assert found == sorted(int(source.documents.lengths[r.line]) for r in source.recordings)
    assert torch.equal(source(1).mel, recordings(folder)(1).mel)
    assert torch.equal(source(sum(sizes) - 1).mel, recordings(folder)(sum(sizes) - 1).mel)


def test_padding_is_told_from_tokens(folder: Path) -> None:
    batch = next(b for b in map(recordings(folder, 4.0), range(9)) if b.tokens.lengths is not None)
    for row, length in enumerate(batch.tokens.lengths.tolist()):
        assert not batch.mel[row, FlowConfig().num_frames(length) :].any()
        assert not batch.tokens.tokens[row, length:].any()


def test_what_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no recording of role user and split nowhere; splits: train, unseen_voice"):
        SoundCrops(selection(folder, "nowhere"), WIDE_MEL, 2, 5120)
    with pytest.raises(ValueError, match="crop_length = 5000"):
        SoundCrops(selection(folder), WIDE_MEL, 2, 5000)
    own = copied(folder, tmp_path)
    longer = chosen(selection(own))[0]
    soundfile.write(longer.audio, np.zeros(16000 * 3), 16000)
    lines = [json.loads(line) for line in (own / "speech" / "manifest.jsonl").read_text().splitlines()]
    lines[longer.line]["duration_s"] = 3.0
    (own / "speech" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"wav: 3.00 s, but its 20 tokens last 0.48 s; tokenize"):
        recordings(own).one(0)


def copied(folder: Path, target: Path) -> Path:
    """A corpus to damage."""
    return Path(shutil.copytree(folder, target / "own"))


def test_an_unusable_recording_is_missing_from_its_batch(folder: Path, tmp_path: Path) -> None:
    """On every process alike: whoever reads a batch sees the same, whatever was read before."""
    own = copied(folder, tmp_path)
    bad = chosen(selection(own))[:2]
    bad[0].audio.write_text("no recording")
    soundfile.write(bad[1].audio, np.zeros(16000 * 9), 16000)  # longer than the manifest says
    whole, damaged = recordings(folder), recordings(own)
    numbers = range(len(whole.plan.epoch(0)) + len(whole.plan.epoch(1)))
    with pytest.warns(UserWarning, match="set aside so far"):
        batches = [damaged(number) for number in numbers]
    for number, batch in zip(numbers, batches, strict=True):
        left = [index for index in whole._indices(number) if index > 1]
        assert not left or torch.equal(batch.mel, whole._padded([whole.one(index) for index in left]).mel)
    assert any(0 in whole._indices(n) and len(whole._indices(n)) > 1 for n in numbers)  # neighbours were there to keep
    assert damaged.reader.rejects.keys() == {str(recording.audio) for recording in bad}
    assert "its record says" in damaged.reader.rejects[str(bad[1].audio)]
    for share in (0, 1):
        alone = recordings(own)
        with pytest.warns(UserWarning, match="set aside"):
            assert all(torch.equal(alone(number).mel, batches[number].mel) for number in numbers[share::2])
    with pytest.warns(UserWarning, match="set aside"):
        first = list(recordings(own).first(3))
    assert torch.equal(first[0].mel, whole.one(2).mel) and len(first) == 3


def test_a_batch_of_nothing_usable_is_the_next_one(folder: Path, tmp_path: Path) -> None:
    own = copied(folder, tmp_path)
    chosen(selection(own))[3].audio.unlink()
    damaged = recordings(own, max_batch_s=0.97)  # the longest has a batch of its own
    number = next(n for n in range(99) if damaged._indices(n) == [3])
    with pytest.warns(UserWarning, match="set aside"):
        batch = damaged(number)
    assert torch.equal(batch.mel, damaged(number + 1).mel)


def test_a_crop_is_of_another_recording_where_one_is_unusable(folder: Path, tmp_path: Path) -> None:
    own = copied(folder, tmp_path)
    bad = chosen(selection(own))[1].audio
    bad.write_text("no recording")
    crops, again = (SoundCrops(selection(own), WIDE_MEL, 8, 5120) for _ in range(2))
    with pytest.warns(UserWarning, match="set aside"):
        batches = [crops(number).waveform for number in range(4)]
    assert crops.reader.rejects.keys() == {str(bad)}
    with pytest.warns(UserWarning, match="set aside"):
        assert torch.equal(again(3).waveform, batches[3])  # another share, or a resumed run
    with pytest.warns(UserWarning, match="set aside"):
        heard = list(SoundCrops(selection(own), WIDE_MEL, 1, 5120).wholes(2))
    third = SoundCrops(selection(folder), WIDE_MEL, 1, 5120)._whole(2)
    assert torch.equal(heard[1].waveform, third.waveform)


def test_nothing_usable_ends_it(folder: Path, tmp_path: Path) -> None:
    own = copied(folder, tmp_path)
    for recording in chosen(selection(own)):
        recording.audio.unlink()
    for batch_at in (SoundCrops(selection(own), WIDE_MEL, 2, 5120), recordings(own)):
        for _ in range(2):
            with pytest.raises(ValueError, match=r"manifest.jsonl: all \d+ recordings are unusable; the first: .*wav"):
                batch_at(0)
