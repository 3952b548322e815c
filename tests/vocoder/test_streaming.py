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


def test_flow_stays_near_the_whole_and_does_not_click():
    vocoder, ids = tiny_vocoder(), random_ids(40)
    chunks = stream(vocoder, ids)
    whole, streamed = vocoder.synthesize(ids), torch.cat(chunks)
    log_mel = MelSpectrogram(MelConfig.vocoder())
    assert (log_mel(streamed[None]) - log_mel(whole[None])).abs().mean() < 0.05
    bend = streamed.diff(n=2).abs()
    joins = torch.tensor([len(chunk) for chunk in chunks]).cumsum(0)[:-1]
    at_joins = torch.stack([bend[join - 4 : join + 4].max() for join in joins])
    assert (at_joins < whole.diff(n=2).abs().max()).all()


def test_speaks_before_the_end():
    """The first chunk comes after its groups and the lookahead have arrived, not later."""
    arrived = []

    def arriving():
        for group in groups_of(random_ids(20)):
            arrived.append(group)
            yield group

    next(tiny_vocoder().stream(arriving(), 0, StreamConfig(chunk_groups=(3,), lookahead_groups=1)))
    assert len(arrived) == 4


def test_a_broken_group_is_named():
    groups = groups_of(random_ids(4))
    groups[2][3] = groups[2][0]
    with pytest.raises(ValueError, match="group 2 of the stream"):
        list(tiny_vocoder().stream(groups))
    with pytest.raises(ValueError, match="group 1 of the stream has 4 ids; expected 5"):
        list(tiny_vocoder().stream([groups[0], groups[1][:4]]))


def test_configuration_is_checked():
    with pytest.raises(ValueError, match="at least 1"):
        StreamConfig(chunk_groups=(5, 0))
    with pytest.raises(ValueError, match="context_groups"):
        StreamConfig(context_groups=0)
