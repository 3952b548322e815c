from __future__ import annotations

import math

import pytest
import torch

from megatron_aqaa.tokenizer.features import FilterBank
from megatron_aqaa.tokenizer.front_ends import FRONT_ENDS
from megatron_aqaa.tokenizer.linguistic import stack_frames
from megatron_aqaa.tokenizer.released import linguistic as released
from megatron_aqaa.tokenizer.released.semantic import SHORTEST_PIECE

WAVEFORM = 0.3 * torch.randn(1920 * 25, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", FRONT_ENDS)
def test_every_10_ms_of_whole_groups_has_a_frame(kind: str) -> None:
    front_end = FRONT_ENDS[kind]()
    for groups in (1, 25):
        features = front_end(WAVEFORM[: groups * 1920])
        assert features.shape == (12 * groups, front_end.num_mels) and features.isfinite().all()


@pytest.mark.parametrize("kind", FRONT_ENDS)
def test_features_tell_the_energy(kind: str) -> None:
    """Sound that is twice as loud has four times the energy; energies agree between front ends up to their bands."""
    front_end = FRONT_ENDS[kind]
    quiet, loud = front_end()(WAVEFORM), front_end()(2 * WAVEFORM)
    rise = (front_end.energies(loud) - front_end.energies(quiet))[5:-5].mean()
    assert rise == pytest.approx(2 * math.log(2), abs=0.01)
    torch.testing.assert_close(front_end.of_energies(front_end.energies(quiet)), quiet, rtol=0, atol=1e-5)


def test_stacks_are_those_of_the_released_tokenizer() -> None:
    ours = stack_frames(FRONT_ENDS["kaldi"]()(WAVEFORM)[None], "replicate")[0]
    theirs = released.stack_frames(FRONT_ENDS["kaldi"]().filter_bank(WAVEFORM[None])[0])
    assert torch.equal(ours, theirs)


def test_the_miniature_hears_as_it_did() -> None:
    assert torch.equal(FRONT_ENDS["filter_bank"]()(WAVEFORM), FilterBank()(WAVEFORM))


def test_long_recordings_are_heard_in_pieces_of_30_s() -> None:
    long = 0.1 * torch.randn(31 * 16000 // 1920 * 1920, generator=torch.Generator().manual_seed(1))
    long[480_000:] *= 1e-3
    whisper = FRONT_ENDS["whisper"]()
    assert len(long) - 480_000 > SHORTEST_PIECE
    torch.testing.assert_close(whisper(long)[3000:], whisper(long[480_000:]))
