"""Loading speech as log-mel batches: the torch loader beside librosa, plain torch and DALI on the CPU.

    python benchmarks/audio_loading.py             # about three minutes; needs the extra [bench], and [dali] for DALI
    python benchmarks/audio_loading.py --repeats 5

Recordings are espeak's, as a microphone would have caught them. All forms load the same files in the same batches, and
their features are checked to agree. *librosa*: `librosa.load` and `librosa.feature.melspectrogram`, recording by
recording. *Plain torch*: soundfile, soxr and `torch.stft`, recording by recording, nothing checked. Each form has one
thread; what counts is the processor's time, all threads together, not the clock, so that other jobs on the machine
matter less. All forms of a line take turns.
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
from side_by_side import Forms, core_milliseconds, medians, save
from torch import Tensor, nn

from megatron_aqaa.audio.mel import MelConfig, mel_bands
from megatron_aqaa.audio.synthetic import Espeak, record
from megatron_aqaa.data.audio_loader import AudioBatch, AudioLoaderConfig
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


def forms_of(case: Case, directory: Path) -> tuple[Forms, int, float]:
    """The forms, and the recordings and seconds that each call loads."""
    config = AudioLoaderConfig(
        AudioSource(directory, "folder"),
        Features(case.features, MEL),  # type: ignore[arg-type]
        batching=Batching(max_batch_s=120, num_buckets=4, shuffle=False),
        num_workers=0,
    )
    ours = TorchLoader(config)
    paths = [[ours.records[i].audio for i in batch.tolist()] for batch in ours.plan.epoch(0)]
    plain = PlainMel(case.features)

    def features(loader: Iterator[AudioBatch]) -> list[Tensor]:
        return [batch.features for batch in loader]

    forms: Forms = {"ours": lambda: features(iter(ours)), "plain torch": lambda: list(batches(paths, plain))}
    if librosa:
        forms["librosa"] = lambda: list(batches(paths, lambda path: librosa_mel(path, case.features)))
    if has_dali():
        from megatron_aqaa.data.dali_loader import DaliLoader

        dali = DaliLoader(config)
        forms["DALI, CPU"] = lambda: features(iter(dali))
    return forms, len(ours.records), sum(record.duration_s for record in ours.records)


def check(forms: Forms) -> dict[str, float]:
    """Mean difference of each form's features from ours.

    Raises:
        AssertionError: They are not the same features.
    """
    ours = forms["ours"]()
    differences = {}
    for name, form in forms.items():
        apart = [(a - b).abs().mean() for a, b in zip(ours, form(), strict=True)]
        differences[name] = float(torch.stack(apart).max())
        assert differences[name] < 1e-4, f"{name}: features are off by {differences[name]} in the mean"
    return differences


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """A line of the table, and the record for the JSON."""
    with tempfile.TemporaryDirectory() as folder:
        forms, count, seconds = forms_of(case, write_speech(Path(folder), case))
        differences = check(forms)
        times = medians(forms, repeats, core_milliseconds)
    items = {name: 1e3 * count / ms for name, ms in times.items()}
    ratios = {name: items["ours"] / rate for name, rate in items.items() if name != "ours"}
    print(f"{case.title} (n = {count}, {seconds / count:.1f} s each)")
    for name, rate in items.items():
        ratio = f"   ours is {ratios[name]:.2f}×" if name in ratios else ""
        print(f"    {name:12s} {rate:7.0f} items and {rate * seconds / count:7.0f} s of sound a core-second{ratio}")
    for name in {"librosa", "DALI, CPU"} - set(items):
        print(f"    {name:12s} not measured: not installed")
    return {
        "case": case.title,
        "recordings": count,
        "audio_s": seconds,
        "median_core_ms": times,
        "items_per_core_s": items,
        "audio_s_per_core_s": {name: rate * seconds / count for name, rate in items.items()},
        "ours_to": ratios,
        "mean_difference_from_ours": differences,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, help="JSON; default benchmarks/results/audio_loading_cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    results = [measure(case, args.repeats) for case in CASES]
    save(
        "audio_loading", args.output, results, repeats=args.repeats, threads=1, load_before=load,
        librosa=librosa and librosa.__version__, dali_gpu="not measured",
    )  # fmt: skip


if __name__ == "__main__":
    main()
