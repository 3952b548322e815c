from __future__ import annotations

import pytest
import torch

from megatron_aqaa.tokenizer.layers import Encoder, EncoderConfig, FeatureNorm, valid_frames


@pytest.mark.parametrize("attention_interval", [0, 1, 2])
def test_padding_does_not_reach_valid_positions(attention_interval: int) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(width=16, num_heads=2, kernel_size=5, attention_interval=attention_interval)
    encoder = Encoder(config, num_layers=3).double()
    short, long = torch.randn(1, 7, 16).double(), torch.randn(1, 12, 16).double()
    padded = torch.cat([torch.nn.functional.pad(short, (0, 0, 0, 5), value=3.0), long])
    together = encoder(padded, valid_frames(torch.tensor([7, 12]), 12))
    alone = encoder(short, valid_frames(torch.tensor([7]), 7))
    torch.testing.assert_close(together[:1, :7], alone, rtol=0, atol=1e-12)


def test_attention_stands_where_the_interval_says() -> None:
    kinds = {0: "CCC", 1: "ACACAC", 2: "ACCAC"}
    for interval, expected in kinds.items():
        encoder = Encoder(EncoderConfig(width=8, num_heads=2, attention_interval=interval), num_layers=3)
        assert "".join(type(block).__name__[0] for block in encoder.blocks) == expected


def test_feature_norm_zeroes_padding() -> None:
    norm = FeatureNorm(2)
    norm.mean.copy_(torch.tensor([1.0, -1.0]))
    norm.deviation.copy_(torch.tensor([2.0, 4.0]))
    got = norm(torch.tensor([[[3.0, 3.0], [9.0, 9.0]]]), torch.tensor([[True, False]]))
    assert got.tolist() == [[[1.0, 1.0], [0.0, 0.0]]]


def test_sizes_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match="multiple of num_heads = 4"):
        EncoderConfig(width=30)
    with pytest.raises(ValueError, match="kernel_size = 4 must be odd"):
        EncoderConfig(kernel_size=4)
