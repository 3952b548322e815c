from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from megatron_aqaa.audio.io import RESAMPLER, load_waveform
from megatron_aqaa.audio.kaldi_fbank import KaldiFilterBank
from megatron_aqaa.config import load_config, save_config
from megatron_aqaa.data.audio_loader import AudioLoaderConfig
from megatron_aqaa.data.audio_loading.batch_plan import Batching
from megatron_aqaa.data.audio_loading.effects import Effects
from megatron_aqaa.data.audio_loading.features import Features
from megatron_aqaa.data.audio_loading.records import AudioSource
from megatron_aqaa.data.torch_loader import TorchLoader
from tests.data.audio_loaders import assert_same
from tests.data.recordings import encoded, voice, write_manifest, write_mixed

pytestmark = pytest.mark.filterwarnings("ignore:recordings at")


def test_features_are_those_of_the_tokenizers(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", write_mixed(tmp_path, 25))
    loader = TorchLoader(AudioLoaderConfig(AudioSource(manifest), Features("kaldi"), num_workers=0))
    fbank = KaldiFilterBank()
    assert loader.resampler == RESAMPLER
    count = 0
    for batch in loader:
        for name, values, length in zip(batch.ids, batch.features, batch.lengths, strict=True):
            expected = fbank(load_waveform(name)[None])[0]
            torch.testing.assert_close(values[:length], expected, rtol=0, atol=2e-5)
            count += 1
    assert count == 25


def test_one_order_whatever_the_number_of_processes(tmp_path: Path) -> None:
    config = AudioLoaderConfig(
        AudioSource(write_manifest(tmp_path / "m.jsonl", write_mixed(tmp_path, 20)), max_duration_s=5),
        effects=Effects(noise_db=(-60, -50)),
        batching=Batching(6, num_buckets=2),
        num_workers=0,
    )
    expected = list(TorchLoader(config))
    assert len(expected) > 3
    for num_workers in (1, 2):
        found = list(TorchLoader(dataclasses.replace(config, num_workers=num_workers)))
        for batch, one in zip(found, expected, strict=True):
            assert_same(batch, one)


@pytest.mark.parametrize(("told_s", "message"), [(0.2, "0.40 s or more, its record says 0.20 s"), (0.6, "0.40 s, its")])
def test_a_recording_that_is_not_as_long_as_its_manifest_says(tmp_path: Path, told_s: float, message: str) -> None:
    path = write_mixed(tmp_path, 1, 16000)[0]
    (tmp_path / "m.jsonl").write_text(f'{{"audio": "{path.name}", "duration_s": {told_s}}}\n')
    loader = TorchLoader(AudioLoaderConfig(AudioSource(tmp_path / "m.jsonl"), num_workers=0))
    with pytest.warns(UserWarning, match=message):
        assert list(loader) == []


def test_a_cut_mp3_is_told_by_its_header(tmp_path: Path) -> None:
    content = encoded(voice(0, 3.0, 16000), 16000, "mp3")
    (tmp_path / "cut.mp3").write_bytes(content[: len(content) // 2])
    loader = TorchLoader(AudioLoaderConfig(AudioSource(tmp_path, "folder"), num_workers=0))
    with pytest.warns(
        UserWarning, match="cut.mp3: 1.* s, its record says 3.00 s; correct that, or copy the file again"
    ):
        assert list(loader) == []


def test_settings_are_a_yaml_file(tmp_path: Path) -> None:
    config = AudioLoaderConfig(AudioSource(Path("m.jsonl")), Features("log_mel"), world_size=2)
    save_config(config, tmp_path / "loader.yaml")
    assert load_config(AudioLoaderConfig, tmp_path / "loader.yaml") == config


def test_dalis_resampler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resampler 'dali': this loader has soxr only"):
        TorchLoader(AudioLoaderConfig(AudioSource(tmp_path), resampler="dali"))
