"""Computing the features of a speech corpus, in blocks, by several processes; see `feature_store` for the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_aqaa.audio.io import load_waveform
from megatron_aqaa.tokenizer.feature_store import FRONT_END, NO_PHONE, FeatureStore, Utterance, read_front_end
from megatron_aqaa.tokenizer.features import (
    FRAMES_PER_GROUP,
    SAMPLE_RATE_HZ,
    SAMPLES_PER_GROUP,
    pitch_octaves,
    prepare_waveform,
)
from megatron_aqaa.tokenizer.front_ends import FRONT_ENDS, FrontEndKind
from megatron_aqaa.tokenizer.phones import unstressed
from megatron_aqaa.tokenizer.workers import map_blocks
from megatron_aqaa.whole_file import write_whole

SILENCE = "_"
HOP_LENGTH = SAMPLES_PER_GROUP // FRAMES_PER_GROUP


@dataclass(frozen=True)
class FeatureConfig:
    """What to compute features of.

    Attributes:
        manifest: `manifest.jsonl`; each line has `audio`, `duration_s`, `split` and `text`; `phones`, a list of (start
            in seconds, name), may be left out on all lines.
        output: receives the arrays.
        num_workers: processes; 0 works in the calling process.
        utterances_per_block: unit of work.
        front_end: what the encoder will hear: `filter_bank` for convnext, `kaldi` for sanm, `whisper` for whisper.
    """

    manifest: Path
    output: Path
    num_workers: int = 2
    utterances_per_block: int = 100
    front_end: FrontEndKind = "filter_bank"


@dataclass(frozen=True)
class _Corpus:
    """The lines of a manifest and their places in the arrays."""

    root: Path
    records: list[dict[str, Any]]
    phones: list[str]
    offsets: list[int]


def _read_corpus(manifest: Path) -> _Corpus:
    if not manifest.is_file():
        raise ValueError(f"{manifest}: no such manifest; the speech stage writes it")
    return _parse_corpus(manifest, manifest.stat().st_mtime_ns)


@lru_cache(1)  # a worker process reads it once, not with every block
def _parse_corpus(manifest: Path, _version: int) -> _Corpus:
    records = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    lengths = [num_groups(record["duration_s"]) * FRAMES_PER_GROUP for record in records]
    return _Corpus(manifest.parent, records, _phone_names(records, manifest), np.cumsum([0, *lengths]).tolist())


def _phone_names(records: list[dict[str, Any]], manifest: Path) -> list[str]:
    """Silence, then the others in order; none if no record has phones."""
    without = [number for number, record in enumerate(records, start=1) if not record.get("phones")]
    if len(without) == len(records):
        return []
    if without:
        raise ValueError(f"{manifest}:{without[0]}: no phones, but other lines have them; give them to all or to none")
    names = {unstressed(name) for record in records for _, name in record["phones"]}
    phones = [SILENCE, *sorted(names - {SILENCE})]
    if len(phones) > NO_PHONE:
        raise ValueError(f"{manifest}: {len(phones)} different phones; at most {NO_PHONE} can be stored")
    return phones


def num_groups(duration_s: float) -> int:
    """Whole groups of 120 ms that a prepared recording has."""
    return -(-round(duration_s * SAMPLE_RATE_HZ) // SAMPLES_PER_GROUP)


def write_features(config: FeatureConfig, on_progress: Callable[[int], object] = lambda done: None) -> FeatureStore:
    """Compute the features of a speech manifest, or what is missing of them.

    Args:
        config: inputs and output.
        on_progress: called with the utterances done so far, first at the start.

    Raises:
        ValueError: a record or its audio is damaged (the message names it), or `output` belongs to another manifest.
    """
    corpus = _read_corpus(config.manifest)
    config.output.mkdir(parents=True, exist_ok=True)
    missing = np.flatnonzero(_open_arrays(config.output, corpus, config.front_end) == 0).tolist()
    size, total = config.utterances_per_block, len(corpus.records)
    blocks = [missing[i : i + size] for i in range(0, len(missing), size)]
    done = total - len(missing)
    on_progress(done)
    for count in map_blocks(partial(_write_block, config), blocks, config.num_workers):
        done += count
        on_progress(done)
    _write_index(config.output, corpus)
    return FeatureStore(config.output)


def _open_arrays(directory: Path, corpus: _Corpus, front_end: FrontEndKind) -> np.ndarray:
    """Create the arrays unless they are there already; returns the `done` flags."""
    num_frames, total = corpus.offsets[-1], len(corpus.records)
    num_mels = FRONT_ENDS[front_end].num_mels
    shapes = {
        "fbank": ((num_frames, num_mels), np.float16),
        "phones": ((num_frames,), np.uint8),
        "pitch": ((num_frames // 2,), np.float16),
        "done": ((total,), np.uint8),
    }
    if not (directory / "done.npy").exists():
        write_whole(directory / FRONT_END, front_end)
        for name, (shape, dtype) in shapes.items():
            np.lib.format.open_memmap(directory / f"{name}.npy", "w+", dtype, shape).flush()
    found = {name: np.load(directory / f"{name}.npy", mmap_mode="r").shape for name in shapes}
    sizes = {name: shape for name, (shape, _) in shapes.items()}
    if found != sizes or read_front_end(directory) != front_end:
        raise ValueError(
            f"{directory}: holds features of another manifest or front end; delete the directory or name another"
        )
    return np.load(directory / "done.npy", mmap_mode="r")


def _write_block(config: FeatureConfig, block: list[int]) -> int:
    torch.set_num_threads(1)
    corpus, directory = _read_corpus(config.manifest), config.output
    front_end = FRONT_ENDS[config.front_end]()
    phone_index = {name: i for i, name in enumerate(corpus.phones)}
    fbank, phones, pitch = (np.load(directory / f"{name}.npy", mmap_mode="r+") for name in Utterance._fields)
    for i in block:
        start, stop = corpus.offsets[i : i + 2]
        waveform = _waveform(corpus.root / corpus.records[i]["audio"], stop - start)
        fbank[start:stop] = front_end(waveform).numpy()
        labels = corpus.records[i].get("phones")
        phones[start:stop] = frame_labels(labels, phone_index, stop - start) if labels else NO_PHONE
        pitch[start // 2 : stop // 2] = pitch_octaves(waveform).numpy()
    np.load(directory / "done.npy", mmap_mode="r+")[block] = 1  # last, so that a killed block is done again
    return len(block)


def _waveform(path: Path, num_frames: int) -> torch.Tensor:
    waveform = prepare_waveform(load_waveform(path, SAMPLE_RATE_HZ))
    if len(waveform) != num_frames * HOP_LENGTH:
        raise ValueError(
            f"{path}: {len(waveform) // SAMPLES_PER_GROUP} groups of 120 ms, by the manifest's duration_s "
            f"{num_frames // FRAMES_PER_GROUP}; correct it there"
        )
    return waveform


def frame_labels(phones: Sequence[tuple[float, str]], index: dict[str, int], num_frames: int) -> np.ndarray:
    """[F] uint8 phone index of each 10 ms, taken at its centre; silence before the first phone."""
    starts_s = np.array([start for start, _ in phones])
    names = np.array([index[SILENCE], *(index[unstressed(name)] for _, name in phones)], dtype=np.uint8)
    centres_s = (np.arange(num_frames) + 0.5) * HOP_LENGTH / SAMPLE_RATE_HZ
    return names[np.searchsorted(starts_s, centres_s, side="right")]


def _write_index(directory: Path, corpus: _Corpus) -> None:
    fbank = np.load(directory / "fbank.npy", mmap_mode="r")
    sample = np.asarray(fbank[:: max(1, len(fbank) // 200_000)], dtype=np.float32)
    index = {
        "phones": corpus.phones,
        "texts": [record.get("text", "") for record in corpus.records],
        "offsets": corpus.offsets,
        "splits": [record["split"] for record in corpus.records],
        "mean": sample.mean(0).tolist(),
        "deviation": sample.std(0).tolist(),
    }
    write_whole(directory / "index.json", json.dumps(index))
