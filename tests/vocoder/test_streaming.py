"""A stream says what the whole says."""

from __future__ import annotations

import pytest
import torch

from megatron_aqaa.audio.mel import MelConfig, MelSpectrogram
from megatron_aqaa.vocoder.acoustic import SamplingConfig
from megatron_aqaa.vocoder.streaming import StreamConfig
from megatron_aqaa.vocoder.token_vocoder import TokenVocoder
from tests.vocoder.tiny_vocoder import random_ids, tiny_vocoder


def groups_of(ids) -> list[list[int]]:
    return ids.reshape(-1, 5).tolist()


def stream(vocoder: TokenVocoder, ids, config: StreamConfig | None = None) -> list[torch.Tensor]:
    return list(vocoder.stream(groups_of(ids), 0, config))


def test_chunks_grow_and_cover_everything():
    chunks = stream(tiny_vocoder(), random_ids(40))
    assert [len(chunk) / 1920 for chunk in chunks] == [5, 8, 16, 11]


@pytest.mark.parametrize("groups", [0, 1, 2, 5, 7])
def test_short_streams(groups):
    chunks = stream(tiny_vocoder(), random_ids(groups))
    assert sum(map(len, chunks)) == groups * 1920


def test_equals_the_whole_where_context_reaches_far_enough():
    """Without flow the tiny networks see 11 frames (of 20 ms) to each side; two groups of lookahead are 12."""
    vocoder, ids = tiny_vocoder(SamplingConfig(steps=0)), random_ids(30)
    streamed = torch.cat(stream(vocoder, ids, StreamConfig(chunk_groups=(3, 4), context_groups=4, lookahead_groups=2)))
    whole = vocoder.synthesize(ids)
    assert (streamed - whole).norm() < 0.005 * whole.norm()  # what is left is the rounding of the pitch
    without_lookahead = torch.cat(stream(vocoder, ids, StreamConfig(chunk_groups=(3, 4), lookahead_groups=0)))
    assert (without_lookahead - whole).norm() > 0.05 * whole.norm()  # so the lookahead is what does it


def test_flow_stays_near_the_whole():
    """Log-mel L1 to the whole: .058 of a stream, .132 without lookahead, .148 of chunks spoken apart."""
    vocoder, ids = tiny_vocoder(), random_ids(40)
    log_mel = MelSpectrogram(MelConfig.vocoder())
    whole = log_mel(vocoder.synthesize(ids)[None])

    def distance(chunks: list[torch.Tensor]) -> float:
        return float((log_mel(torch.cat(chunks)[None]) - whole).abs().mean())

    streamed = distance(stream(vocoder, ids))
    assert streamed < 0.5 * distance([vocoder.synthesize(ids[i : i + 80]) for i in range(0, len(ids), 80)])
    assert streamed < 0.5 * distance(stream(vocoder, ids, StreamConfig(lookahead_groups=0)))


def jumps(waveform: torch.Tensor, joins: torch.Tensor) -> torch.Tensor:
    """Difference of the two samples that meet at each join, over the usual difference in the 5 ms around it."""
    steps = waveform.diff().abs()
    return torch.stack([steps[join - 1] / steps[join - 41 : join + 39].square().mean().sqrt() for join in joins])


def high_band(waveform: torch.Tensor, joins: torch.Tensor) -> torch.Tensor:
    """Share of the energy above 6 kHz in the 4 ms around each join."""
    spectra = [torch.fft.rfft(waveform[join - 32 : join + 32] * torch.hann_window(64)).abs().square() for join in joins]
    return torch.stack([spectrum[24:].sum() / spectrum.sum() for spectrum in spectra])


def test_joins_do_not_click():
    """At the joins the samples step no further than in the whole; pieces spoken apart step four times as far."""
    vocoder, ids = tiny_vocoder(), random_ids(60)
    chunks = stream(vocoder, ids, StreamConfig(chunk_groups=(3,)))
    joins = torch.arange(1, len(chunks)) * 3 * 1920
    streamed, whole = torch.cat(chunks), vocoder.synthesize(ids)
    apart = torch.cat([vocoder.synthesize(ids[i : i + 15]) for i in range(0, len(ids), 15)])
    assert jumps(streamed, joins).mean() < 1.2 * jumps(whole, joins).mean()
    assert jumps(apart, joins).mean() > 3 * jumps(whole, joins).mean()
    assert high_band(streamed, joins).mean() < 1.2 * high_band(whole, joins).mean()


def frames_decoded(vocoder: TokenVocoder, groups: int) -> int:
    """What one stream costs."""
    counts = []
    hook = vocoder.generator.register_forward_pre_hook(lambda _, given: counts.append(given[0].mel.shape[1]))
    stream(vocoder, random_ids(groups))
    hook.remove()
    return sum(counts)


def test_cost_is_linear():
    """Of 60 s against twelve times 5 s, and of twice 60 s; half of the work is paid again for context and lookahead."""
    vocoder = tiny_vocoder(SamplingConfig(steps=0))
    minute = frames_decoded(vocoder, 500)
    assert minute <= 1.1 * 12 * frames_decoded(vocoder, 42)
    assert frames_decoded(vocoder, 1000) <= 2 * minute
    assert minute <= 1.55 * 500 * 6


def test_speaks_before_the_end():
    """The first chunk comes after its groups and the lookahead have arrived, not later."""
    arrived = []

    def arriving():
        for group in groups_of(random_ids(20)):
            arrived.append(group)
            yield group

    next(tiny_vocoder().stream(arriving(), 0, StreamConfig(chunk_groups=(3,), lookahead_groups=1)))
    assert len(arrived) == 4


def test_a_malformed_stream_is_named():
    ids = random_ids(4).tolist()
    ids[13] = ids[10]
    with pytest.raises(ValueError, match=rf"position 13: id {ids[13]} is linguistic where a semantic one was expected"):
        list(tiny_vocoder().stream(ids))
    with pytest.raises(ValueError, match="position 9: the stream ends inside a group, after 4 of its 5 ids"):
        list(tiny_vocoder().stream([ids[:5], ids[5:9]]))


@pytest.mark.parametrize("piece", [1, 3, 5, 64])
def test_pieces_of_any_length_sound_the_same(piece):
    vocoder, ids = tiny_vocoder(), random_ids(14).tolist()
    pieces = ids if piece == 1 else [ids[i : i + piece] for i in range(0, len(ids), piece)]
    assert torch.equal(torch.cat(list(vocoder.stream(pieces))), torch.cat(stream(vocoder, random_ids(14))))


def test_a_malformed_stream_sounds_like_its_whole_groups():
    """A stray id, a lost one, one that is no id: two groups are missing, the rest is as if they had never been."""
    vocoder, ids = tiny_vocoder(), random_ids(20).tolist()
    broken = [*ids[:15], 3, *ids[15:27], *ids[28:60], ids[0], *ids[60:72], 99_999, *ids[73:]]
    left = [*ids[:25], *ids[30:70], *ids[75:]]
    faults = []
    spoken = torch.cat(list(vocoder.stream(broken, on_fault=faults.append)))
    assert torch.equal(spoken, torch.cat(list(vocoder.stream(left))))
    assert torch.equal(vocoder.synthesize(broken, 0, lambda fault: None), vocoder.synthesize(left))
    wrong = "wrong_codebook"  # twice for the stray linguistic id: it breaks its group and starts none
    assert [fault.kind for fault in faults] == ["not_audio", wrong, wrong, "out_of_range", wrong]


def test_configuration_is_checked():
    with pytest.raises(ValueError, match="at least 1"):
        StreamConfig(chunk_groups=(5, 0))
    with pytest.raises(ValueError, match="context_groups"):
        StreamConfig(context_groups=0)
