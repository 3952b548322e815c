"""Streams of the full-size vocoder: what they are joined of, and that nothing is heard of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_aqaa.audio.mel import MelConfig
from megatron_aqaa.vocoder.cosyvoice.chunked_stream import ChunkedStream
from megatron_aqaa.vocoder.cosyvoice.flow_model import TokenBatch
from megatron_aqaa.vocoder.cosyvoice.flow_sampling import FlowSampling
from megatron_aqaa.vocoder.cosyvoice.full_size_vocoder import FullSizeVocoder
from megatron_aqaa.vocoder.cosyvoice.hift import HiftGenerator
from megatron_aqaa.vocoder.cosyvoice.spoken_tokens import SpokenTokens
from megatron_aqaa.vocoder.cosyvoice.streaming_voice import PhasedGenerator, can_stream
from megatron_aqaa.vocoder.cosyvoice.token_ids import in_columns
from megatron_aqaa.vocoder.excitation import START, PhaseAnchor, pulse_phase
from megatron_aqaa.vocoder.frames import VoiceFrames
from megatron_aqaa.vocoder.streaming import StreamConfig
from tests.vocoder.cosyvoice.tiny_flow import CONFIG as FLOW
from tests.vocoder.cosyvoice.tiny_flow import tiny_flow
from tests.vocoder.cosyvoice.tiny_hift import CONFIG as HIFT
from tests.vocoder.tiny_vocoder import VOCABULARY, random_ids

MEL = MelConfig(sample_rate_hz=24000, n_fft=1920, win_length=1920, hop_length=480)
GROUP = 2880
CHUNKS = StreamConfig(chunk_groups=(2, 3, 4), context_groups=3, lookahead_groups=1)


def hift() -> HiftGenerator:
    torch.manual_seed(1)
    sizes = {"upsample_rates": (8, 5, 3), "upsample_kernel_sizes": (16, 11, 7), "source_kernel_sizes": (7, 7, 11)}
    model = HiftGenerator(replace(HIFT, mel=MEL, **sizes)).eval()
    torch.nn.init.constant_(model.f0_predictor.classifier.bias, 150.0)  # a voice, about so high
    return model


def vocoder() -> FullSizeVocoder:
    config = replace(FLOW, vocab_size=5120, linguistic_size=1024, token_form="columns", chunk_tokens=(15,), mel=MEL)
    return FullSizeVocoder(tiny_flow(config), hift(), VOCABULARY, FlowSampling(steps=1))


def test_one_chunk_is_the_whole() -> None:
    speaker, ids = vocoder(), random_ids(6)
    whole = speaker.synthesize(ids, seed=3)
    assert whole.shape == (6 * GROUP,)
    chunks = list(speaker.stream(ids.tolist(), 3, StreamConfig(chunk_groups=(50,))))
    assert len(chunks) == 1
    assert torch.equal(chunks[0], whole)


def streamed(
    speaker: FullSizeVocoder, ids: np.ndarray, config: StreamConfig, prompt: SpokenTokens | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A stream, and the whole utterance under the stream's chunk mask."""
    voice, count = speaker.voice, len(ids) // 5
    stream = ChunkedStream(voice, 3, config, prompt)
    spoken = torch.cat(list(stream.run(map(tuple, ids.reshape(-1, 5).tolist()))))
    with torch.inference_mode():
        mel = voice.mel(voice.codes(ids), 3, 0, tuple(stream.ends[:-1]), prompt)
        return spoken, voice.generator(voice.heard(mel), voice.breath(range(count), 3), START)[0]


def test_a_stream_is_the_whole_under_the_same_chunk_mask() -> None:
    """With a context that reaches back to the start: 4e-7 of the waveform is rounding, 9e-3 what the mask changes."""
    speaker, ids = vocoder(), random_ids(16)
    config = StreamConfig(chunk_groups=(2, 3, 4), context_groups=16, lookahead_groups=2)
    spoken, same_mask = streamed(speaker, ids, config)
    assert (spoken - same_mask).norm() < 1e-5 * same_mask.norm()
    assert (speaker.synthesize(ids, 3) - same_mask).norm() > 1e-3 * same_mask.norm()
    forgetful, _ = streamed(speaker, ids, replace(config, context_groups=2))
    assert (forgetful - same_mask).norm() > 1e-3 * same_mask.norm()


def voice_of(speaker: FullSizeVocoder) -> SpokenTokens:
    """A prompt of three groups."""
    waveform = torch.randn(3 * GROUP, generator=torch.Generator().manual_seed(3)) * 0.1
    return speaker.prompt(waveform, random_ids(3, seed=9))


def test_a_voice_prompt_is_before_the_utterance() -> None:
    speaker, ids = vocoder(), random_ids(6)
    voice, prompt = speaker.voice, voice_of(speaker)
    noise = torch.cat((voice._noise(6, range(-3, 0), 6, 80), voice._noise(6, range(6), 6, 80)), dim=1)
    told = torch.cat((prompt.mel, torch.zeros(36, 80)))[None]
    codes = voice.codes([*random_ids(3, seed=9), *ids])
    whole = speaker.flow_model.sample(TokenBatch(in_columns(*codes)), noise, 1, prompt=told)
    with torch.inference_mode():
        frames = voice.heard(whole[:, 18:])
        expected = voice.generator(frames, voice.breath(range(6), 3), START)[0]
    spoken = speaker.synthesize(ids, 3, prompt=prompt)
    assert torch.equal(spoken, expected)
    assert not torch.equal(spoken, speaker.synthesize(ids, 3))
    assert torch.equal(*speaker.stream(ids.tolist(), 3, StreamConfig(chunk_groups=(50,)), prompt=prompt), spoken)


def test_a_stream_with_a_voice_prompt_is_the_whole_with_it() -> None:
    speaker, ids = vocoder(), random_ids(16)
    config = StreamConfig(chunk_groups=(2, 3, 4), context_groups=16, lookahead_groups=2)
    spoken, same_mask = streamed(speaker, ids, config, voice_of(speaker))
    without, _ = streamed(speaker, ids, config)
    assert (spoken - same_mask).norm() < 1e-5 * same_mask.norm()
    assert (without - same_mask).norm() > 1e-3 * same_mask.norm()


def test_every_chunk_hears_the_voice_prompt() -> None:
    speaker, sizes = vocoder(), []
    hook = speaker.flow_model.encoder.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[1] // 3))
    chunks = StreamConfig((2, 4), context_groups=3, lookahead_groups=1)
    spoken = list(speaker.stream(random_ids(10).tolist(), 3, chunks, prompt=voice_of(speaker)))
    hook.remove()
    assert sizes == [3 + size for size in (3, 2 + 1 + 4, 3 + 4)]
    assert sum(map(len, spoken)) == 10 * GROUP


def test_a_frame_is_drawn_once() -> None:
    """Each chunk costs its own groups, context and lookahead, so a stream's cost grows linearly."""
    speaker, sizes = vocoder(), []
    hook = speaker.flow_model.encoder.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[1] // 3))
    list(speaker.stream(random_ids(21).tolist(), 3, StreamConfig((2, 4), context_groups=3, lookahead_groups=1)))
    hook.remove()
    # groups drawn at a time: 2 + 1, then 4 new ones behind 3 spoken ones (2 at first) and the lookahead; 2 are left
    assert sizes == [3, 2 + 1 + 4, *[3 + 1 + 4] * 3, 3 + 1 + 2]


def test_chunks_last_as_long_as_their_groups_however_ids_arrive() -> None:
    speaker, ids = vocoder(), random_ids(11)
    chunks = list(speaker.stream(ids.tolist(), 3, CHUNKS))
    assert [len(chunk) // GROUP for chunk in chunks] == [2, 3, 4, 2]
    again = speaker.stream([ids[:7], ids[7:8], ids[8:]], 3, CHUNKS)
    assert all(torch.equal(one, two) for one, two in zip(chunks, again, strict=True))


def test_nothing_jumps_at_the_joins() -> None:
    waveform = torch.cat(list(vocoder().stream(random_ids(14).tolist(), 0, CHUNKS)))
    jumps = waveform.diff().abs()
    joins = torch.tensor([2, 5, 9, 13]) * GROUP - 1
    elsewhere = torch.ones(len(jumps), dtype=torch.bool)
    elsewhere[joins] = False
    assert jumps[joins].max() < jumps[elsewhere].max()


def test_harmonics_of_a_stretch_go_on_in_the_next() -> None:
    generator = PhasedGenerator(hift())
    octaves = torch.linspace(-0.3, 0.4, 30)[None]
    frames = VoiceFrames(torch.zeros(1, 30, 80), octaves, torch.ones(1, 30))
    noise = torch.randn(1, 30 * 480, 9)
    whole = generator.source(frames, noise, START)
    cycles = float(pulse_phase(octaves, 480, 24000, START)[0, 18 * 480] % 1)
    later = generator.source(frames.slice(12, 30), noise[:, 12 * 480 :], PhaseAnchor(6, cycles))
    torch.testing.assert_close(later[:, 6 * 480 :], whole[:, 18 * 480 :], rtol=0, atol=1e-5)


def test_malformed_streams_are_repaired() -> None:
    ids = random_ids(6).tolist()
    faults: list = []
    spoken = list(vocoder().stream([*ids[:10], 3, *ids[10:17], *ids[18:]], config=CHUNKS, on_fault=faults.append))
    assert sum(map(len, spoken)) == 5 * GROUP
    assert len(faults) >= 2


def test_a_group_must_be_whole_frames() -> None:
    assert not can_stream(FLOW)
    whole = FullSizeVocoder(tiny_flow(replace(FLOW, vocab_size=5120, mel=HIFT.mel)), HiftGenerator(HIFT), VOCABULARY)
    with pytest.raises(ValueError, match="a stream needs 6 frames a group, as the 24 kHz form"):
        whole.stream(random_ids(2).tolist())
