"""Masks on cases that can be worked by hand, and the layers that apply them against plain ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from megatron_aqaa.vocoder.cosyvoice.conformer import by_place, relative_positions
from megatron_aqaa.vocoder.cosyvoice.frame_mask import FrameMask
from megatron_aqaa.vocoder.cosyvoice.length_regulator import _interpolate, frame_table
from megatron_aqaa.vocoder.cosyvoice.masked_layers import convolve, group_norm, upsample

CPU = torch.device("cpu")


def test_who_sees_whom() -> None:
    mask = FrameMask(5, torch.tensor([5, 3]), (2,))
    assert mask.attention(CPU).int().squeeze(1).tolist() == [
        [[1, 1, 0, 0, 0]] * 2 + [[1, 1, 1, 1, 1]] * 3,
        [[1, 1, 0, 0, 0]] * 2 + [[1, 1, 1, 0, 0]] * 3,
    ]
    assert mask.counts(CPU).tolist() == [[2, 2, 5, 5, 5], [2, 2, 3, 3, 3]]
    assert FrameMask(5).attention(CPU) is None


def test_halving() -> None:
    half = FrameMask(7, torch.tensor([7, 3]), (2, 4)).halved()
    assert (half.size, half.lengths.tolist(), half.boundaries) == (4, [4, 2], (1, 2))
    with pytest.raises(ValueError, match="begins at frame 3 cannot be halved"):
        FrameMask(7, None, (3,)).halved()


@pytest.mark.parametrize("boundaries", [(0,), (5,), (3, 3)])
def test_boundaries_must_rise(boundaries: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must rise between 1 and 4"):
        FrameMask(5, None, boundaries)


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_convolution_of_chunks_is_that_of_each_beginning(kernel: int) -> None:
    """Chunk c is what a plain convolution gives of all frames up to its end."""
    layer, x = nn.Conv1d(3, 4, kernel, padding=kernel // 2), torch.randn(2, 3, 12)
    found = convolve(layer, x, FrameMask(12, None, (4, 6)))
    for start, end in ((0, 4), (4, 6), (6, 12)):
        torch.testing.assert_close(found[..., start:end], layer(x[..., :end])[..., start:end])


def test_upsampling_of_chunks_is_that_of_each_beginning() -> None:
    layer, x = nn.ConvTranspose1d(3, 4, 4, stride=2, padding=1), torch.randn(2, 3, 9)
    found = upsample(layer, x, FrameMask(9, None, (4, 5)))
    for start, end in ((0, 4), (4, 5), (5, 9)):
        torch.testing.assert_close(found[..., 2 * start : 2 * end], layer(x[..., :end])[..., 2 * start : 2 * end])


def test_group_norm_of_what_is_seen() -> None:
    layer, x = nn.GroupNorm(2, 6), torch.randn(2, 6, 10) * 3 + 1
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    found = group_norm(layer, x, FrameMask(10, torch.tensor([10, 7]), (4,)))
    for start, end in ((0, 4), (4, 10)):
        torch.testing.assert_close(found[0, :, start:end], layer(x[:1, :, :end])[0, :, start:end], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1, :, 4:7], layer(x[1:, :, :7])[0, :, 4:7], rtol=1e-4, atol=1e-5)


def test_interpolation_is_torchs_at_a_whole_ratio_and_stays_in_its_chunk() -> None:
    tokens = torch.randn(2, 6, 4)
    table = frame_table(FrameMask(6), FrameMask(12), 2.0, CPU)
    plain = functional.interpolate(tokens.transpose(1, 2), scale_factor=2.0, mode="linear").transpose(1, 2)
    torch.testing.assert_close(_interpolate(tokens, table), plain)
    chunked = frame_table(FrameMask(6, torch.tensor([6, 5]), (4,)), FrameMask(12, None, (8,)), 2.0, CPU)
    assert chunked.right[0, :8].max() == 3 and chunked.right[1].max() == 4
    # frame 7 lies at (7 + .5) / 2 − .5 = 3.25, and token 3 is the last of its chunk
    assert (int(chunked.left[0, 7]), float(chunked.share[0, 7])) == (3, 0.0)


def test_relative_scores_against_a_loop() -> None:
    by_distance = torch.randn(2, 4, 7)  # distances 3 … −3
    found = by_place(by_distance)
    for i in range(4):
        for j in range(4):
            assert torch.equal(found[:, i, j], by_distance[:, i, 3 - (i - j)])
    positions = relative_positions(torch.zeros(1, 3, 4))
    torch.testing.assert_close(positions[:, 0], torch.arange(2.0, -3, -1).sin())
    torch.testing.assert_close(positions[:, 3], (torch.arange(2.0, -3, -1) * 0.01).cos())
