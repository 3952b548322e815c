"""DALI's loader beside torch's. That it keeps the contract is in `test_audio_loader.py`."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.audio.io import RESAMPLER
from megatron_aqaa.audio.mel import MelConfig
from megatron_aqaa.audio.synthetic import Espeak, record
from megatron_aqaa.data.audio_loader import AudioBatch, AudioLoader, AudioLoaderConfig
from megatron_aqaa.data.audio_loading.batch_plan import Batching
from megatron_aqaa.data.audio_loading.effects import Effects
from megatron_aqaa.data.audio_loading.features import FeatureExtractor, Features
from megatron_aqaa.data.audio_loading.open import open_loader
from megatron_aqaa.data.audio_loading.records import AudioSource
from megatron_aqaa.data.torch_loader import TorchLoader
from tests.data.audio_loaders import dali_loader, needs_dali
from tests.data.recordings import encoded, voice, write_manifest, write_mixed

pytestmark = pytest.mark.filterwarnings("ignore:recordings at", "ignore:DALI's resampler")

ALL = Effects(trim_db=40, normalize_peak=True, gain_db=(-6, 6), noise_db=(-90, -46))
FEATURES = {
    "whisper 80": Features("whisper"),
    "whisper 128": Features("whisper", num_mels=128),
    "tokenizer": Features("log_mel", MelConfig.tokenizer()),
    "vocoder": Features("log_mel", MelConfig.vocoder()),
    "htk": Features("log_mel", MelConfig(num_mels=40, n_fft=512, win_length=400, hop_length=160, scale="htk", power=2)),
    "hop is window": Features("log_mel", MelConfig(n_fft=512, win_length=400, hop_length=400)),
}
DECIBEL = {"whisper 80": 40.0, "whisper 128": 40.0, "htk": 4.343}  # of a unit; of magnitudes and natural logarithms:
MAGNITUDE_DECIBEL = 8.686


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 16 spoken sentences at 16 kHz, wav and flac."""
    directory = tmp_path_factory.mktemp("speech")
    paths = []
    with Espeak() as engine:
        for i in range(16):
            text = "She sells sea shells by the sea shore, if the weather is fine. "[: 20 + 3 * i]
            samples = record(engine.speak(text, f"en-us+{'fm'[i % 2]}{1 + i % 4}", 120 + 5 * i), seed=i).samples
            paths.append(directory / f"{i:02d}.{('wav', 'flac')[i % 2]}")
            soundfile.write(paths[-1], samples, 16000)
    return write_manifest(directory / "manifest.jsonl", paths)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 40 recordings of all formats, 8 to 48 kHz, 1 to 8 channels."""
    directory = tmp_path_factory.mktemp("mixed")
    return write_manifest(directory / "manifest.jsonl", write_mixed(directory / "audio", 40))


def config(manifest: Path, features: Features, effects: Effects, **changes: object) -> AudioLoaderConfig:
    source = AudioSource(manifest, max_duration_s=10)
    made = AudioLoaderConfig(source, features, effects, Batching(30, num_buckets=3), num_workers=0)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def pairs(one: AudioLoader, other: AudioLoader) -> Iterator[tuple[AudioBatch, AudioBatch]]:
    """Batches of both, which are of the same recordings, shape and lengths."""
    for a, b in zip(one, other, strict=True):
        assert a.ids == b.ids and a.features.shape == b.features.shape
        assert a.lengths.tolist() == b.lengths.tolist()
        yield a, b


def exact(features: Features, batch: AudioBatch) -> list[Tensor]:
    """Features [F, M] of a batch of waveforms in double precision."""
    extract = FeatureExtractor(features, 16000)
    assert extract.network is not None
    win_length = 400 if features.kind == "whisper" else features.mel.win_length
    network = extract.network.double()
    network.window = torch.hann_window(win_length, dtype=torch.float64)
    waveforms = zip(batch.features.double(), batch.lengths.tolist(), strict=True)
    return [network(waveform[None, :n])[0].T for waveform, n in waveforms]


@needs_dali
@pytest.mark.parametrize("effects", [Effects(), ALL], ids=["plain", "all effects"])
@pytest.mark.parametrize("name", FEATURES)
def test_log_mel_of_speech(speech: Path, name: str, effects: Effects) -> None:
    """Within 0.001 dB where a band is at most 60 dB below the loudest of its frame, which is what single precision can
    tell; in the bands below, at most twice as far from the truth as torch is itself, or 0.001 dB."""
    settings = config(speech, FEATURES[name], effects)
    waveforms = TorchLoader(dataclasses.replace(settings, features=Features()))
    decibel = DECIBEL.get(name, MAGNITUDE_DECIBEL)
    between, of_dali, of_torch, count = 0.0, 0.0, 0.0, 0
    for (a, b), waveform in zip(pairs(TorchLoader(settings), dali_loader(settings)), waveforms, strict=True):
        for ours, dalis, truth in zip(a.features, b.features, exact(FEATURES[name], waveform), strict=True):
            ours, dalis = (values[: len(truth)] * decibel for values in (ours, dalis))
            truth = truth * decibel
            loud = truth > truth.amax(1, keepdim=True) - 60
            between = max(between, float((ours - dalis)[loud].abs().max()))
            of_dali = max(of_dali, float((dalis - truth).abs().max()))
            of_torch = max(of_torch, float((ours - truth).abs().max()))
            count += 1
    assert count == 16
    assert between < 1e-3
    assert of_dali < max(1e-3, 2 * of_torch)


@needs_dali
@pytest.mark.parametrize("effects", [Effects(), ALL], ids=["plain", "all effects"])
def test_kaldi_and_waveforms_of_speech(speech: Path, effects: Effects) -> None:
    settings = config(speech, Features("kaldi"), effects)
    for a, b in pairs(TorchLoader(settings), dali_loader(settings)):
        torch.testing.assert_close(a.features, b.features, rtol=0, atol=1e-3)
    settings = config(speech, Features(), effects)
    for a, b in pairs(TorchLoader(settings), dali_loader(settings)):
        torch.testing.assert_close(a.features, b.features, rtol=0, atol=1e-6)


@needs_dali
@pytest.mark.parametrize("effects", [Effects(), ALL], ids=["plain", "all effects"])
def test_all_formats_rates_and_channels_through_soxr(mixed: Path, effects: Effects) -> None:
    settings = config(mixed, Features(), effects)
    ids = set()
    dali = dali_loader(settings)
    assert dali.resampler == RESAMPLER
    for a, b in pairs(TorchLoader(settings), dali):
        torch.testing.assert_close(a.features, b.features, rtol=0, atol=2e-6)
        ids |= set(a.ids)
    assert len(ids) == 40 and not dali.rejects


@needs_dali
def test_dalis_own_resampler_is_another_and_named(mixed: Path) -> None:
    """Alike far below the band edge, for recordings that hold next to nothing above it."""
    settings = config(mixed, Features(), Effects(), resampler="dali")
    soxr, dali = TorchLoader(dataclasses.replace(settings, resampler="soxr")), dali_loader(settings)
    assert dali.resampler.startswith("DALI ") and dali.resampler != RESAMPLER
    largest = 0.0
    for a, b in pairs(soxr, dali):
        largest = max(largest, float((a.features - b.features).abs().max()))
        spectra = [torch.fft.rfft(batch.features, dim=1).abs() for batch in (a, b)]
        low = spectra[0].shape[1] * 3 // 8  # 3 kHz of 8
        error = (spectra[0] - spectra[1])[:, :low].norm() / spectra[0][:, :low].norm()
        assert error < 2e-3
    assert 1e-4 < largest < 0.05
    with pytest.raises(ValueError, match=f"made with the resampler '{RESAMPLER}', but here .* 'DALI"):
        dali.load_state_dict(soxr.state_dict())


@needs_dali
def test_dalis_resampler_folds_back_what_soxr_takes_out(tmp_path: Path) -> None:
    """Why it is not the default. Should this fail with a newer DALI, then `RESAMPLER` must tell the two apart."""
    time_s = torch.arange(48000, dtype=torch.float64) / 48000
    soundfile.write(tmp_path / "10_khz.wav", (0.5 * torch.sin(2 * torch.pi * 10_000 * time_s)).numpy(), 48000)
    settings = AudioLoaderConfig(AudioSource(tmp_path, "folder"), num_workers=0)
    with pytest.warns(UserWarning, match="folds back"):
        dali = dali_loader(dataclasses.replace(settings, resampler="dali"))
    (soxrs,), (dalis,) = TorchLoader(settings), dali
    assert soxrs.features[0, 1000:-1000].abs().max() < 1e-4
    assert int(torch.fft.rfft(dalis.features[0]).abs().argmax()) == 6000
    assert dalis.features[0, 1000:-1000].abs().max() == pytest.approx(0.5, abs=0.01)


@needs_dali
def test_what_soundfile_reads_and_dali_does_not(tmp_path: Path) -> None:
    scratched = tmp_path / "scratched.ogg"  # one page of a second is lost
    content = bytearray(encoded(voice(0, 12.0, 16000), 16000, "ogg"))
    place = len(content) * 6 // 10
    content[place : place + 4] = b"\xff" * 4
    scratched.write_bytes(content)
    write_manifest(tmp_path / "m.jsonl", [*write_mixed(tmp_path, 30, 16000), scratched])
    source = AudioSource(tmp_path / "m.jsonl", max_duration_s=15)
    settings = config(source.path, Features(), Effects(), source=source, batching=Batching(20))
    dali, found = dali_loader(settings), set()
    for a, b in pairs(TorchLoader(settings), dali):
        torch.testing.assert_close(a.features, b.features, rtol=0, atol=2e-6)
        found |= set(b.ids)
    assert str(scratched) in found and not dali.rejects
    assert dali._not_for_dali  # type: ignore[attr-defined]  # DALI did fail


@needs_dali
def test_either_loader_goes_on_where_the_other_stopped(speech: Path) -> None:
    settings = config(speech, Features("whisper"), ALL, batching=Batching(10, num_buckets=2))
    first = TorchLoader(settings)
    next(iter(first))
    second = dali_loader(settings)
    second.load_state_dict(first.state_dict())
    for a, b in pairs(first, second):
        torch.testing.assert_close(a.features, b.features, rtol=0, atol=1e-4)


@needs_dali
@pytest.mark.parametrize("effects", [Effects(), ALL], ids=["plain", "all effects"])
@pytest.mark.parametrize("features", [*FEATURES.values(), Features(), Features("kaldi")], ids=str)
def test_the_gpu_graph_is_defined(features: Features, effects: Effects) -> None:
    """As far as DALI goes without a driver: operators, their arguments and devices; not a run."""
    from nvidia import dali

    from megatron_aqaa.data.audio_loading.dali_pipeline import graph

    with dali.Pipeline(batch_size=4, num_threads=1, device_id=0):
        outputs = graph(config(Path("m.jsonl"), features, effects), iter(()), "gpu")
    assert outputs.values.device == "gpu"
    assert outputs.num_samples.device == "cpu"


@needs_dali
@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["whisper", "log_mel", "kaldi", "waveform"])
def test_the_gpu_gives_the_batches_of_the_cpu(tmp_path: Path, kind: str) -> None:
    from megatron_aqaa.data.dali_loader import DaliLoader

    paths = [path for path in write_mixed(tmp_path, 30, 16000) if path.suffix in (".wav", ".flac")]
    settings = config(write_manifest(tmp_path / "m.jsonl", paths), Features(kind), ALL)  # type: ignore[arg-type]
    for a, b in pairs(TorchLoader(settings), DaliLoader(settings, "gpu")):
        assert b.features.device == platform.device()
        torch.testing.assert_close(a.features, b.features.cpu(), rtol=0, atol=2e-3)


@needs_dali
def test_the_gpu_is_refused_where_there_is_none(speech: Path) -> None:
    from megatron_aqaa.data.dali_loader import DaliLoader

    if platform.device().type == "cuda":
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="PyTorch finds no CUDA device"):
        DaliLoader(config(speech, Features(), Effects()), "gpu")


def test_without_dali_torch_is_opened_and_dali_named(speech: Path) -> None:
    program = f"""
import sys
sys.modules["nvidia"] = None  # as if it were not there
from pathlib import Path
from megatron_aqaa.data.audio_loader import AudioLoaderConfig
from megatron_aqaa.data.audio_loading.records import AudioSource
from megatron_aqaa.data.audio_loading.open import open_loader
config = AudioLoaderConfig(AudioSource(Path({str(speech)!r})), num_workers=0)
try:
    open_loader(config, "dali")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "the DALI loader needs NVIDIA DALI" in done.stdout and "pip install 'megatron-aqaa[dali]'" in done.stdout


def test_torch_is_opened_where_there_is_no_gpu(speech: Path) -> None:
    if platform.device().type == "cuda":
        pytest.skip("there is one")
    settings = config(speech, Features(), Effects())
    assert isinstance(open_loader(settings), TorchLoader)
    assert isinstance(open_loader(settings, "torch"), TorchLoader)
