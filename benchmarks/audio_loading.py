"""Loading speech as log-mel batches: the torch loader beside librosa, plain torch and DALI on the CPU.

    python benchmarks/audio_loading.py             # about three minutes; needs the extra [bench], and [dali] for DALI
    python benchmarks/audio_loading.py --repeats 5

Recordings are espeak's, as a microphone would have caught them. All forms load the same files in the same batches, and
their features are checked to agree. *librosa*: `librosa.load` and `librosa.feature.melspectrogram`, recording by
recording. *Plain torch*: soundfile, soxr and `torch.stft`, recording by recording, nothing checked. Each form has one
thread; what counts is the processor's time, all threads together, not the clock, so that other jobs on the machine
matter less. All forms of a line take turns.

On a machine with a GPU and DALI, the torch loader on all cores takes turns with DALI on all cores and the GPU instead,
by the clock.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# numpy's and librosa's own thread pools; read when they are loaded, so before the imports
os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")})

import numpy as np
import soundfile
import soxr
import torch
from side_by_side import Forms, core_milliseconds, medians, milliseconds, on_gpu, save
from torch import Tensor, nn

from megatron_aqaa.audio.mel import MelConfig, mel_bands
from megatron_aqaa.audio.synthetic import Espeak, record
from megatron_aqaa.data.audio_loader import AudioLoader, AudioLoaderConfig
from megatron_aqaa.data.audio_loading.batch_plan import Batching
from megatron_aqaa.data.audio_loading.features import Features
from megatron_aqaa.data.audio_loading.open import has_dali
from megatron_aqaa.data.audio_loading.records import AudioSource
from megatron_aqaa.data.torch_loader import TorchLoader

RATE_HZ = 16000
MEL = MelConfig.tokenizer()
WORDS = (
    "the weather is fine today but tomorrow rain will come over the hills and all the fields of the old farm".split()
)


class Case(NamedTuple):
    """Which recordings and features.

    Attributes:
        title: For the table.
        features: "whisper" or "log_mel".
        words: In each recording, from … to.
        count: Recordings.
        suffix: Of the files.
        rate_hz: Of the files.
    """

    title: str
    features: str
    words: tuple[int, int] = (12, 40)
    count: int = 48
    suffix: str = "wav"
    rate_hz: int = RATE_HZ


CASES = (
    Case("Whisper's mel, wav 16 kHz", "whisper"),
    Case("log-mel, wav 16 kHz", "log_mel"),
    Case("log-mel, flac 16 kHz", "log_mel", suffix="flac"),
    Case("log-mel, wav 24 kHz, resampled", "log_mel", rate_hz=24000),
    Case("log-mel, short commands, wav 16 kHz", "log_mel", words=(1, 4), count=192),
)


try:
    import librosa
except ImportError:
    librosa = None


def write_speech(directory: Path, case: Case) -> Path:
    """A folder of recordings."""
    random = np.random.default_rng(0)
    with Espeak() as engine:
        for number in range(case.count):
            text = " ".join(random.choice(WORDS, random.integers(*case.words, endpoint=True)))
            speech = engine.speak(text, f"en-us+{'fm'[number % 2]}{1 + number % 4}", int(random.integers(120, 200)))
            samples = record(speech, seed=number).samples / 32768
            if case.rate_hz != RATE_HZ:
                samples = soxr.resample(samples, RATE_HZ, case.rate_hz)
            soundfile.write(directory / f"{number:03d}.{case.suffix}", samples, case.rate_hz)
    return directory


def librosa_mel(path: Path, kind: str) -> Tensor:
    """[F, M] with librosa."""
    samples, _ = librosa.load(path, sr=RATE_HZ)
    if kind == "whisper":
        energy = librosa.feature.melspectrogram(
            y=samples, sr=RATE_HZ, n_fft=400, hop_length=160, n_mels=80, pad_mode="reflect"
        )[:, :-1]
        decades = np.log10(np.maximum(energy, 1e-10))
        return torch.from_numpy((np.maximum(decades, decades.max() - 8) + 4) / 4).T
    margin = (MEL.n_fft - MEL.hop_length) // 2
    magnitude = librosa.feature.melspectrogram(
        y=np.pad(samples, margin, mode="reflect"),
        sr=RATE_HZ, n_fft=MEL.n_fft, win_length=MEL.win_length, hop_length=MEL.hop_length, center=False,
        power=1, n_mels=MEL.num_mels,
    )  # fmt: skip
    return torch.from_numpy(np.log(np.maximum(magnitude, MEL.floor))).T


class PlainMel:
    """[F, M] with torch, as it is usually written."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.mel = MelConfig(n_fft=400, win_length=400, hop_length=160) if kind == "whisper" else MEL
        self.window, self.bands = torch.hann_window(self.mel.win_length), mel_bands(self.mel)
        self.margin = 200 if kind == "whisper" else (MEL.n_fft - MEL.hop_length) // 2

    def __call__(self, path: Path) -> Tensor:
        samples, rate_hz = soundfile.read(path, dtype="float32")
        if rate_hz != RATE_HZ:
            samples = soxr.resample(samples, rate_hz, RATE_HZ)
        padded = nn.functional.pad(torch.from_numpy(samples)[None], (self.margin, self.margin), mode="reflect")[0]
        mel = self.mel
        spectrum = torch.stft(
            padded, mel.n_fft, mel.hop_length, mel.win_length, self.window, center=False, return_complex=True
        )
        if self.kind == "whisper":
            decades = (self.bands @ spectrum[:, :-1].abs() ** 2).clamp(min=1e-10).log10()
            return ((torch.maximum(decades, decades.max() - 8) + 4) / 4).T
        return (self.bands @ spectrum.abs()).clamp(min=mel.floor).log().T


def batches(paths: list[list[Path]], mel: Callable[[Path], Tensor]) -> Iterator[Tensor]:
    """Padded batches [B, F, M]."""
    return (nn.utils.rnn.pad_sequence([mel(path) for path in of_batch], batch_first=True) for of_batch in paths)


def settings(case: Case, directory: Path) -> AudioLoaderConfig:
    return AudioLoaderConfig(
        AudioSource(directory, "folder"),
        Features(case.features, MEL),  # type: ignore[arg-type]
        batching=Batching(max_batch_s=120, num_buckets=4, shuffle=False),
        num_workers=os.cpu_count() or 1 if on_gpu() else 0,
    )


def epoch(loader: AudioLoader) -> list[Tensor]:
    return [batch.features for batch in loader]


def cpu_forms(case: Case, config: AudioLoaderConfig, ours: TorchLoader) -> Forms:
    paths = [[ours.records[i].audio for i in batch.tolist()] for batch in ours.plan.epoch(0)]
    plain = PlainMel(case.features)
    forms: Forms = {"ours": lambda: epoch(ours), "plain torch": lambda: list(batches(paths, plain))}
    if librosa:
        forms["librosa"] = lambda: list(batches(paths, lambda path: librosa_mel(path, case.features)))
    if has_dali():
        from megatron_aqaa.data.dali_loader import DaliLoader

        dali = DaliLoader(config)
        forms["DALI, CPU"] = lambda: epoch(dali)
    return forms


def gpu_forms(config: AudioLoaderConfig, ours: TorchLoader) -> Forms:
    from megatron_aqaa.data.dali_loader import DaliLoader

    dali = DaliLoader(config, "gpu")
    return {"ours": lambda: epoch(ours), "DALI, GPU": lambda: epoch(dali)}


def check(forms: Forms) -> dict[str, float]:
    """Mean difference of each form's features from ours.

    Raises:
        AssertionError: They are not the same features.
    """
    ours = forms["ours"]()
    differences = {}
    for name, form in forms.items():
        apart = [(a - b.cpu()).abs().mean() for a, b in zip(ours, form(), strict=True)]
        differences[name] = float(torch.stack(apart).max())
        assert differences[name] < 1e-4, f"{name}: features are off by {differences[name]} in the mean"
    return differences


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """A line of the table, and the record for the JSON."""
    with tempfile.TemporaryDirectory() as folder:
        config = settings(case, write_speech(Path(folder), case))
        ours = TorchLoader(config)
        forms = gpu_forms(config, ours) if on_gpu() else cpu_forms(case, config, ours)
        differences = check(forms)
        times = medians(forms, repeats, milliseconds if on_gpu() else core_milliseconds)
    count, seconds = len(ours.records), sum(record.duration_s for record in ours.records)
    items = {name: 1e3 * count / ms for name, ms in times.items()}
    ratios = {name: items["ours"] / rate for name, rate in items.items() if name != "ours"}
    print(f"{case.title} (n = {count}, {seconds / count:.1f} s each)")
    unit, key = ("second", "s") if on_gpu() else ("core-second", "core_s")
    for name, rate in items.items():
        ratio = f"   ours is {ratios[name]:.2f}×" if name in ratios else ""
        print(f"    {name:12s} {rate:7.0f} items and {rate * seconds / count:7.0f} s of sound a {unit}{ratio}")
    return {
        "case": case.title,
        "recordings": count,
        "audio_s": seconds,
        "median_ms" if on_gpu() else "median_core_ms": times,
        f"items_per_{key}": items,
        f"audio_s_per_{key}": {name: rate * seconds / count for name, rate in items.items()},
        "ours_to": ratios,
        "mean_difference_from_ours": differences,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, help="JSON; default benchmarks/results/audio_loading_<device>.json")
    args = parser.parse_args()
    for name, found in (("librosa", librosa or on_gpu()), ("DALI", has_dali())):
        if not found:
            print(f"{name} is not installed: not measured")
    if on_gpu() and not has_dali():
        return
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    results = [measure(case, args.repeats) for case in CASES]
    facts: dict[str, Any] = {"repeats": args.repeats, "load_before": load}
    if not on_gpu():
        facts |= {"threads": 1, "librosa": librosa and librosa.__version__, "dali_gpu": "not measured"}
    save("audio_loading", args.output, results, **facts)


if __name__ == "__main__":
    main()
