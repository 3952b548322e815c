"""Speaking on one core: real-time factors of the miniature vocoder beside its plain forms and Griffin-Lim.

    python benchmarks/vocoder.py                        # random weights: a minute
    python benchmarks/vocoder.py --vocoder runs/demo/vocoder --tokens runs/demo/tokens/audio

The last line is no time: the log-mel L1 between whole utterances (those of `--tokens`, one after the other) and their
streams, other draws of the noise, and chunks that are spoken as utterances of their own.

Real-time factor: seconds of work per second of speech. The plain forms have the same weights and give the same result,
which is checked: depthwise convolutions as Conv1d between transposes, overlap-add through `fold`, and guidance as two
passes; at full size (105 M, one guided step) attention as four operations, see `full_size_field.py`. Griffin-Lim is the
32-iteration kind on the same mel, with torch's STFT. All forms of a line take turns.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from full_size_field import field_forms
from side_by_side import Forms, medians, save
from torch import Tensor, nn
from torch.nn import functional

from megatron_aqaa.audio.mel import MelSpectrogram, mel_bands
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.vocabulary import GROUP_DURATION_S, GROUP_SIZE, Vocabulary
from megatron_aqaa.vocoder import flow
from megatron_aqaa.vocoder.acoustic import AcousticConfig, AcousticModel, SamplingConfig
from megatron_aqaa.vocoder.frames import FRAMES_PER_GROUP, VoiceFrames
from megatron_aqaa.vocoder.generator import Generator, GeneratorConfig
from megatron_aqaa.vocoder.layers import ConvNeXtBlock
from megatron_aqaa.vocoder.spectrum import ShortTimeFourier
from megatron_aqaa.vocoder.streaming import StreamConfig
from megatron_aqaa.vocoder.token_vocoder import TokenVocoder

GROUPS = 42  # 5 s
ITERATIONS = 32
Network = TypeVar("Network", bound=nn.Module)


class PlainDepthwise(nn.Module):
    """A depthwise convolution over time as it is usually written."""

    def __init__(self, fast: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(fast.weight[..., 0].contiguous()), fast.bias

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, F, 1] → the same."""
        padding = self.weight.shape[-1] // 2
        return functional.conv1d(x[..., 0], self.weight, self.bias, padding=padding, groups=len(self.weight))[..., None]


class PlainFourier(ShortTimeFourier):
    """Overlap-add as it is usually written."""

    def _overlap_add(self, frames: Tensor) -> Tensor:
        length = (frames.shape[1] - 1) * self.hop_length + self.n_fft
        columns = frames.transpose(1, 2).contiguous()
        return functional.fold(columns, (1, length), (1, self.n_fft), stride=(1, self.hop_length))[:, 0, 0]


def plain(network: Network) -> Network:
    """A copy with plain parts."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        if isinstance(module, ConvNeXtBlock):
            module.depthwise = PlainDepthwise(module.depthwise)
    if isinstance(network, Generator):
        network.fourier = PlainFourier(network.config.n_fft, network.config.hop_length)
    return network


def two_passes(model: AcousticModel, condition: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Guided sampling as it is usually written."""

    def field(y: Tensor, time: Tensor) -> Tensor:
        with_codes = model.velocity_net(y, time, condition)
        return flow.guided(with_codes, model.velocity_net(y, time, torch.zeros_like(condition)), flow.GUIDANCE)

    return flow.euler(field, noise, steps)


def griffin_lim(generator: Generator) -> Callable[[Tensor], Tensor]:
    """Log-mel [B, F, M] → [B, N]: magnitudes by the bands' pseudo-inverse, phases by iteration."""
    mel = generator.config.mel
    inverse, window = torch.linalg.pinv(mel_bands(mel)), torch.hann_window(mel.n_fft)

    def transform(waveform: Tensor) -> Tensor:
        return torch.stft(waveform, mel.n_fft, mel.hop_length, window=window, return_complex=True)

    def speak(log_mel: Tensor) -> Tensor:
        magnitude = (inverse @ log_mel.exp().transpose(1, 2)).clamp(min=0)
        spectrum = torch.polar(magnitude, 2 * torch.pi * torch.rand_like(magnitude))
        for _ in range(ITERATIONS):
            waveform = torch.istft(spectrum, mel.n_fft, mel.hop_length, window=window)
            spectrum = torch.polar(magnitude, transform(waveform).angle())
        return torch.istft(spectrum, mel.n_fft, mel.hop_length, window=window)

    return speak


def random_vocoder() -> TokenVocoder:
    torch.manual_seed(0)
    acoustic, generator = AcousticModel(AcousticConfig()), Generator(GeneratorConfig())
    for output in (acoustic.velocity_net.output, generator.output):
        nn.init.normal_(output.weight, std=0.02)
    acoustic.mel_mean.fill_(-4.0)
    return TokenVocoder(acoustic, generator, Vocabulary())


def random_ids(vocabulary: Vocabulary, groups: int) -> list[int]:
    source = torch.Generator().manual_seed(0)
    linguistic = torch.randint(vocabulary.linguistic_size, (groups, 2), generator=source)
    semantic = torch.randint(vocabulary.semantic_size, (groups, 3), generator=source)
    parts = (linguistic + vocabulary.linguistic_start, semantic + vocabulary.semantic_start)
    return torch.cat(parts, dim=1).flatten().tolist()


def generator_forms(vocoder: TokenVocoder, frames: VoiceFrames) -> Forms:
    breath, eager = vocoder.breath(range(GROUPS), 0), plain(vocoder.generator)
    torch.testing.assert_close(eager(frames, breath), vocoder.generator(frames, breath), rtol=0, atol=1e-3)
    lim = griffin_lim(vocoder.generator)
    return {
        "ours": lambda: vocoder.generator(frames, breath),
        "eager": lambda: eager(frames, breath),
        f"Griffin-Lim {ITERATIONS}": lambda: lim(frames.mel),
    }


def flow_forms(vocoder: TokenVocoder, steps: int) -> Forms:
    model, eager = vocoder.acoustic, plain(vocoder.acoustic)
    condition = model.predict(vocoder.codes(random_ids(vocoder.vocabulary, GROUPS))).condition
    noise = torch.randn(1, GROUPS * FRAMES_PER_GROUP, model.config.num_mels)

    def ours() -> Tensor:
        return flow.euler(model.field(condition, flow.GUIDANCE), noise, steps)

    torch.testing.assert_close(two_passes(eager, condition, noise, steps), ours(), rtol=1e-3, atol=1e-3)

    def bf16() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return ours()

    return {"ours": ours, "ours, bf16": bf16, "eager": lambda: two_passes(eager, condition, noise, steps)}


def stream_forms(vocoder: TokenVocoder) -> Forms:
    """One minute of stream, and twelve streams of 5 s."""
    minute, short = (random_ids(vocoder.vocabulary, groups) for groups in (500, GROUPS))
    return {
        "60 s": lambda: list(vocoder.stream(minute)),
        "12 × 5 s": lambda: [list(vocoder.stream(short)) for _ in range(12)],
    }


def first_sound(vocoder: TokenVocoder) -> Forms:
    """From the moment when the first chunk and its lookahead are there."""
    stream = StreamConfig()
    ids = random_ids(vocoder.vocabulary, stream.chunk_groups[0] + stream.lookahead_groups)
    return {"first sound": lambda: next(vocoder.stream(ids))}


def recorded_ids(tokens: Path, groups: int) -> list[int]:
    """Tokens of the last recordings of a data set, one after the other."""
    documents, ids = Documents(tokens), []
    for index in reversed(range(len(documents))):
        ids += documents[index].token_ids.tolist()
        if len(ids) >= groups * GROUP_SIZE:
            return ids[: groups * GROUP_SIZE]
    raise ValueError(f"{tokens}: fewer than {groups} groups of tokens")


def stream_error(vocoder: TokenVocoder, ids: list[int]) -> dict:
    """How far streams are from the whole."""
    log_mel, chunk = MelSpectrogram(vocoder.generator.config.mel), StreamConfig().chunk_groups[-1] * GROUP_SIZE
    apart = [vocoder.synthesize(ids[start : start + chunk]) for start in range(0, len(ids), chunk)]
    forms = {
        "stream": torch.cat(list(vocoder.stream(ids))),
        "other noise": vocoder.synthesize(ids, seed=1),
        "chunks apart": torch.cat(apart),
    }
    whole = log_mel(vocoder.synthesize(ids)[None])
    errors = {name: float((log_mel(waveform[None]) - whole).abs().mean()) for name, waveform in forms.items()}
    print(f"{'log-mel L1 to the whole':28s}" + "  ".join(f"{name} {error:.3f}" for name, error in errors.items()))
    return {"case": "log-mel L1 to the whole", "log_mel_l1": errors}


def measure(title: str, forms: Forms, speech_s: float, repeats: int) -> dict:
    """A line, and the record for the JSON."""
    times = medians(forms, repeats)
    factors = {name: ms / 1e3 / speech_s for name, ms in times.items()}
    print(f"{title:28s}" + "  ".join(f"{name} {times[name]:8.1f} ms (RTF {factors[name]:.4f})" for name in times))
    return {"case": title, "speech_s": speech_s, "median_ms": times, "real_time_factor": factors}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocoder", type=Path, help="trained weights instead of random ones")
    parser.add_argument("--tokens", type=Path, help="prefix of a token data set: what is streamed in the last line")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, help="JSON; default benchmarks/results/vocoder_cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    vocoder = TokenVocoder.load(args.vocoder) if args.vocoder else random_vocoder()
    load = os.getloadavg()[0]
    speech_s = GROUPS * GROUP_DURATION_S
    ids = random_ids(vocoder.vocabulary, GROUPS)
    frames = vocoder.acoustic.sample(
        vocoder.codes(ids), torch.randn(1, GROUPS * FRAMES_PER_GROUP, 80), SamplingConfig(steps=0)
    )
    results = [
        measure("generator", generator_forms(vocoder, frames), speech_s, args.repeats),
        *(measure(f"flow, {n} guided steps", flow_forms(vocoder, n), speech_s, args.repeats) for n in (4, 10)),
        measure("full-size flow, a guided step", field_forms(len(ids)), speech_s, max(3, args.repeats // 5)),
        measure("tokens to speech, 4 steps", {"ours": lambda: vocoder.synthesize(ids)}, speech_s, args.repeats),
        measure("stream", first_sound(vocoder), StreamConfig().chunk_groups[0] * GROUP_DURATION_S, args.repeats),
        measure("stream", stream_forms(vocoder), 60.0, max(3, args.repeats // 5)),
        stream_error(vocoder, recorded_ids(args.tokens, 500) if args.tokens else random_ids(vocoder.vocabulary, 500)),
    ]
    save("vocoder", args.output, results, threads=1, load_before=load, trained=bool(args.vocoder))


if __name__ == "__main__":
    main()
