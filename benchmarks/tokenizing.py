"""Tokenizing speech: seconds of speech per core second by stage, two workers beside two runs, memory of a long file.

    python benchmarks/tokenizing.py
    python benchmarks/tokenizing.py --tokenizer runs/demo/tokenizer --recordings 3200
    python benchmarks/tokenizing.py --part memory --hours 3

Without `--tokenizer` both encoders have the miniature's size and random weights: speed does not depend on what they
learnt. The recordings are noise of 4 to 12 s, half of them wav at 16 kHz and half flac at 44.1 kHz. Stages are measured
in processor time of one thread, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from side_by_side import RESULTS, save
from tokenizing_runs import memory, workers

from megatron_aqaa.audio.io import RESAMPLER, load_waveform
from megatron_aqaa.data.audio_tokens import join_blocks
from megatron_aqaa.network_file import save_network
from megatron_aqaa.tokenizer.centroids import nearest_centroid, save_centroids
from megatron_aqaa.tokenizer.corpus import BlockTokenizer, chop
from megatron_aqaa.tokenizer.dual_codebook import DualCodebookTokenizer
from megatron_aqaa.tokenizer.linguistic import LinguisticConfig, LinguisticEncoder
from megatron_aqaa.tokenizer.open import open_tokenizer
from megatron_aqaa.tokenizer.semantic import SemanticConfig, SemanticEncoder
from megatron_aqaa.tokenizer.speech import SpeechTokenizer
from megatron_aqaa.vocabulary import Vocabulary

PARTS = ("stages", "workers", "memory")
PHONES = ["_", *"abcdefghijklmnopqrstuvwxyz"]
FORMATS = (("wav", 16_000), ("flac", 44_100))
LINES_PER_BLOCK = BATCH_SIZE = 16
DISTINCT = 320


def random_tokenizer(directory: Path) -> Path:
    """Both encoders in the miniature's size with random weights."""
    torch.manual_seed(0)
    config = LinguisticConfig()
    save_network(LinguisticEncoder(config, PHONES), directory / "linguistic.pt", units=PHONES)
    save_network(SemanticEncoder(SemanticConfig(), PHONES), directory / "semantic.pt", units=PHONES)
    save_centroids(torch.randn(1024, config.encoder.width), directory / "linguistic_codebook.npy")
    Vocabulary.for_text(1000).save(directory / "vocabulary.yaml")
    return directory


def write_recordings(directory: Path, count: int) -> list[float]:
    """Recordings of noise, and a manifest that names them again and again; returns the seconds of each line."""
    random, lines, seconds = np.random.default_rng(0), list[str](), list[float]()
    for number in range(min(count, DISTINCT)):
        suffix, rate_hz = FORMATS[number % len(FORMATS)]
        seconds.append(round(float(random.uniform(4, 12)), 2))
        noise = random.uniform(-0.3, 0.3, round(seconds[-1] * rate_hz))
        soundfile.write(directory / f"{number}.{suffix}", noise, rate_hz, subtype="PCM_16")
        lines.append(json.dumps({"audio": f"{number}.{suffix}"}) + "\n")
    laps = -(-count // DISTINCT)
    (directory / "manifest.jsonl").write_text("".join((lines * laps)[:count]))
    return (seconds * laps)[:count]


class Stopwatch:
    """Processor time of this process, and seconds of speech, by stage."""

    def __init__(self) -> None:
        self.took_s: dict[str, float] = {}
        self.speech_s: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, speech_s: float) -> Iterator[None]:
        """Count what happens inside."""
        started_s = time.process_time()
        yield
        self.took_s[name] = self.took_s.get(name, 0.0) + time.process_time() - started_s
        self.speech_s[name] = self.speech_s.get(name, 0.0) + speech_s

    def rates(self) -> dict[str, float]:
        """Seconds of speech per core second."""
        return {name: round(self.speech_s[name] / took_s, 1) for name, took_s in self.took_s.items()}


def encoders(tokenizer: SpeechTokenizer) -> dict[str, Callable[[list[torch.Tensor]], object]]:
    """The encoders of a tokenizer, each on a batch of features; of a released one both together."""
    if not isinstance(tokenizer, DualCodebookTokenizer):
        return {"both encoders": tokenizer.encode_features}

    def padded(features: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.tensor([len(fbank) for fbank in features])
        return torch.nn.utils.rnn.pad_sequence(features, batch_first=True).float(), lengths

    def linguistic(features: list[torch.Tensor]) -> object:
        return nearest_centroid(tokenizer.linguistic_encoder(*padded(features)), tokenizer.centroids)

    def semantic(features: list[torch.Tensor]) -> object:
        return tokenizer.semantic_encoder.codes(*padded(features))

    return {"linguistic encoder": linguistic, "semantic encoder": semantic}


def stages(tokenizer_directory: Path, directory: Path, seconds: list[float]) -> dict[str, Any]:
    """Seconds of speech per core second: by stage, and as `BlockTokenizer` does all of it."""
    torch.set_num_threads(1)
    tokenizer, watch = open_tokenizer(tokenizer_directory), Stopwatch()
    names = [f"{directory}/{number}.{FORMATS[number % len(FORMATS)][0]}" for number in range(len(seconds))]
    blocks, work = (
        chop(names, directory / "stages", "", LINES_PER_BLOCK),
        BlockTokenizer(tokenizer_directory, BATCH_SIZE),
    )
    (directory / "stages").mkdir()
    work.make(blocks[0])  # warm
    for number, block in enumerate(blocks):
        lengths = seconds[number * LINES_PER_BLOCK :][: len(block)]
        waveforms = []
        for line, (name, length_s) in enumerate(zip(block.audio, lengths, strict=True)):
            suffix, rate_hz = FORMATS[line % len(FORMATS)]
            with watch.stage(f"read {suffix}, {rate_hz / 1000:g} kHz", length_s):
                waveforms.append(load_waveform(str(name)))
        with watch.stage("features", sum(lengths)):
            features = [tokenizer.features(waveform) for waveform in waveforms]
        for name, encode in encoders(tokenizer).items():
            with watch.stage(name, sum(lengths)), torch.inference_mode():
                encode(features)
        with watch.stage("all of a block, its file too", sum(lengths)):
            work.make(block)
    with watch.stage("join the blocks", sum(seconds)):
        join_blocks(blocks, directory / "audio", tokenizer.vocabulary)
    return {"case": "stages", "speech_s": round(sum(seconds)), "speech_s_per_core_s": watch.rates()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; default: random weights")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--recordings", type=int, default=1600, help="lines of the manifest")
    parser.add_argument("--repeats", type=int, default=3, help="turns of the two ways to use two processes")
    parser.add_argument("--hours", type=float, default=3.0, help="of the long file")
    parser.add_argument(
        "--output", type=Path, default=None, help="JSON; default benchmarks/results/tokenizing_cpu.json"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        tokenizer = (args.tokenizer or random_tokenizer(directory)).absolute()
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "stages": lambda: stages(tokenizer, directory, seconds[:DISTINCT]),
            "workers": lambda: workers(tokenizer, directory, seconds, LINES_PER_BLOCK, args.repeats),
            "memory": lambda: memory(tokenizer, directory, args.hours),
        }
        chosen = args.part or PARTS
        seconds = write_recordings(directory, args.recordings) if {"stages", "workers"} & {*chosen} else []
        output = args.output or RESULTS / "tokenizing_cpu.json"
        before = json.loads(output.read_text())["results"] if output.exists() else []
        results = {result["case"]: result for result in before}  # parts that are not measured now stay
        for part in chosen:
            result = parts[part]()
            results[result["case"]] = result
            print(json.dumps(result, indent=1))
    of = "random, of the miniature's size" if args.tokenizer is None else args.tokenizer.name
    save("tokenizing", output, [*results.values()], tokenizer=of, resampler=RESAMPLER, recordings=args.recordings)


if __name__ == "__main__":
    main()
