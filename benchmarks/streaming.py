"""Streams of the full-size vocoder beside whole utterances: spectral error, joins, cost, first sound.

    python benchmarks/streaming.py                                               # a small vocoder of random weights
    python benchmarks/streaming.py runs/vocoder_tiny --run runs/demo             # held-out answers of `make demo`

"Same mask" is the utterance drawn at once under the chunk mask of the stream: what a stream would be with an endless
context. "Other noise" is the whole utterance with another seed: two draws of the same tokens differ by so much. "Apart"
are the stream's chunks spoken as utterances of their own. A join is heard where the waveform bends more than elsewhere:
the largest second difference within 5 ms of a join, as a rank among those of all stretches of 10 ms (0.5 is the usual,
1.0 the sharpest bend of the utterance). Times are of the processor.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from pathlib import Path

import torch
from side_by_side import core_milliseconds, medians, save
from torch import Tensor

from megatron_aqaa.audio.mel import MelConfig, MelSpectrogram
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.manifest import read_recordings, select
from megatron_aqaa.vocabulary import GROUP_SIZE, Vocabulary
from megatron_aqaa.vocoder.cosyvoice.chunked_stream import ChunkedStream
from megatron_aqaa.vocoder.cosyvoice.conformer import ConformerConfig
from megatron_aqaa.vocoder.cosyvoice.estimator import EstimatorConfig
from megatron_aqaa.vocoder.cosyvoice.flow_model import FlowConfig, FlowModel
from megatron_aqaa.vocoder.cosyvoice.full_size_vocoder import FullSizeVocoder
from megatron_aqaa.vocoder.cosyvoice.hift import HiftConfig, HiftGenerator
from megatron_aqaa.vocoder.excitation import START
from megatron_aqaa.vocoder.streaming import StreamConfig

NUM_GROUPS = 84  # 10 s: four joins
NEAR_JOIN_S = 0.005
SHORT, MINUTE = 42, 500  # groups of 5 and of 60 s


def random_vocoder() -> FullSizeVocoder:
    """The sizes of examples/vocoder/*_24khz_tiny.yaml."""
    torch.manual_seed(0)
    mel = MelConfig(sample_rate_hz=24000, n_fft=1920, win_length=1920, hop_length=480)
    flow = FlowConfig(
        token_form="columns",
        mel=mel,
        encoder=ConformerConfig(128, 128, 4, 512, 2),
        estimator=EstimatorConfig((128, 128), 1, 2, 4, 32),
        chunk_tokens=(15, 24, 48),
    )
    hift = HiftGenerator(HiftConfig(mel, 64, 8, 0.1, 0.003, 10.0, (8, 5, 3), (16, 11, 7), (7, 7, 11), (3, 7)))
    torch.nn.init.constant_(hift.f0_predictor.classifier.bias, 150.0)
    return FullSizeVocoder(FlowModel(flow), hift, Vocabulary())


def random_ids(vocabulary: Vocabulary, groups: int, seed: int = 0) -> list[int]:
    source = torch.Generator().manual_seed(seed)
    linguistic = torch.randint(vocabulary.linguistic_size, (groups, 2), generator=source) + vocabulary.linguistic_start
    semantic = torch.randint(vocabulary.semantic_size, (groups, 3), generator=source) + vocabulary.semantic_start
    return torch.cat((linguistic, semantic), dim=1).flatten().tolist()


def recorded_ids(run: Path) -> list[list[int]]:
    """Held-out answers of a demo, one after the other, as utterances of `NUM_GROUPS` groups."""
    documents = Documents(run / "tokens" / "audio")
    answers = select(read_recordings(run / "speech" / "manifest.jsonl"), "validation", ("assistant",))
    ids = list(itertools.chain(*(documents[answer.line].token_ids.tolist() for answer in answers)))
    size = NUM_GROUPS * GROUP_SIZE
    return [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]


def under_the_same_mask(vocoder: FullSizeVocoder, ids: list[int], stream: ChunkedStream) -> Tensor:
    """The utterance at once, in the chunks of a stream that was run."""
    voice, groups = vocoder.voice, range(len(ids) // GROUP_SIZE)
    assert voice
    mel = voice.mel(voice.codes(ids), 0, 0, tuple(stream.ends[:-1]))
    return voice.generator(voice.heard(mel), voice.breath(groups, 0), START)[0]


def bends(waveform: Tensor, sample_rate_hz: int, joins: list[int]) -> list[float]:
    """Rank of the sharpest bend near each join among those of stretches as long."""
    near = round(NEAR_JOIN_S * sample_rate_hz)
    second = waveform.diff(n=2).abs()
    usual = second[: len(second) // (2 * near) * 2 * near].view(-1, 2 * near).amax(dim=1)
    return [float((usual < second[join - near - 1 : join + near - 1].max()).float().mean()) for join in joins]


def compare(vocoder: FullSizeVocoder, ids: list[int], config: StreamConfig) -> dict[str, float]:
    """Errors of one utterance."""
    assert vocoder.voice
    stream = ChunkedStream(vocoder.voice, 0, config)
    chunks = list(stream.run(tuple(ids[i : i + GROUP_SIZE]) for i in range(0, len(ids), GROUP_SIZE)))
    ends = list(itertools.accumulate(map(len, chunks)))
    per_group = vocoder.voice.samples_per_group
    edges = [0, *(end // per_group * GROUP_SIZE for end in ends)]
    forms = {
        "stream": torch.cat(chunks),
        "same mask": under_the_same_mask(vocoder, ids, stream),
        "whole": vocoder.synthesize(ids),
        "other noise": vocoder.synthesize(ids, seed=1),
        "apart": torch.cat([vocoder.synthesize(ids[a:b]) for a, b in itertools.pairwise(edges)]),
    }
    log_mel = MelSpectrogram(vocoder.generator.config.mel)
    mels = {name: log_mel(waveform[None]) for name, waveform in forms.items()}

    def l1(one: str, two: str) -> float:
        return float((mels[one] - mels[two]).abs().mean())

    left = (forms["stream"] - forms["same mask"]).square().sum() / forms["same mask"].square().sum()
    pairs = (("stream", "same mask"), ("stream", "whole"), ("same mask", "whole"), ("other noise", "whole"))
    ranks = {
        f"rank of joins, {name}": statistics.mean(bends(forms[name], vocoder.sample_rate_hz, ends[:-1]))
        for name in ("stream", "whole", "apart")
    }
    return {f"mel L1, {a} – {b}": l1(a, b) for a, b in (*pairs, ("apart", "whole"))} | {
        "waveform, stream – same mask, dB": float(10 * torch.log10(left)),
        **ranks,
    }


def costs(vocoder: FullSizeVocoder, config: StreamConfig, repeats: int) -> dict[str, float]:
    """Processor milliseconds of streams, and their ratio."""
    ids = {groups: random_ids(vocoder.vocabulary, groups) for groups in (SHORT, MINUTE)}
    first = ids[SHORT][: (config.chunk_groups[0] + config.lookahead_groups) * GROUP_SIZE]
    forms = {
        "60 s": lambda: list(vocoder.stream(ids[MINUTE], config=config)),
        "12 × 5 s": lambda: [list(vocoder.stream(ids[SHORT], config=config)) for _ in range(12)],
        "first sound": lambda: next(vocoder.stream(first, config=config)),
    }
    times = medians(forms, repeats, core_milliseconds)
    return times | {"60 s / 12 × 5 s": times["60 s"] / times["12 × 5 s"]}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocoder", nargs="?", type=Path, help="folder with flow/ and hift/, in the form of 24 kHz")
    parser.add_argument("--run", type=Path, help="directory of `make demo`, whose speech/ and tokens/ are used")
    parser.add_argument("--utterances", type=int, default=8, help="at most so many")
    parser.add_argument("--context", type=int, nargs="+", default=[6], help="groups of context, one run each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON; default benchmarks/results/streaming_cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    vocoder = FullSizeVocoder.load(args.vocoder) if args.vocoder else random_vocoder()
    utterances = [random_ids(vocoder.vocabulary, NUM_GROUPS, seed) for seed in range(3)]
    if args.run:
        utterances = recorded_ids(args.run)[: args.utterances]
    load, results = os.getloadavg()[0], []
    for context in args.context:
        config = StreamConfig(context_groups=context)
        rows = [compare(vocoder, ids, config) for ids in utterances]
        found = {name: statistics.mean(row[name] for row in rows) for name in rows[0]} | costs(
            vocoder, config, args.repeats
        )
        print(f"context {context} groups, {len(utterances)} utterances of {NUM_GROUPS * 0.12:.1f} s")
        for name, value in found.items():
            print(f"  {name:36s}{value:10.4f}")
        results.append({"context_groups": context, "utterances": len(utterances), **found})
    save("streaming", args.output, results, threads=1, load_before=load, trained=bool(args.vocoder))


if __name__ == "__main__":
    main()
