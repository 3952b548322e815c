from __future__ import annotations

import torch

from megatron_aqaa.tokenizer.semantic import FiniteScalarQuantizer, SemanticConfig, SemanticEncoder
from tests.tokenizer.tiny import ENCODER, PHONES


def quantizer() -> FiniteScalarQuantizer:
    torch.manual_seed(0)
    return FiniteScalarQuantizer(16, num_values=6, num_levels=4)


def test_codes_are_digits_in_base_four() -> None:
    fsq = quantizer()
    hidden = 5 * torch.randn(200, 16)
    levels = fsq.levels(hidden)
    assert set(levels.round().unique().tolist()) == {0.0, 1.0, 2.0, 3.0}
    expected = [sum(round(v) * 4**i for i, v in enumerate(row)) for row in levels.tolist()]
    assert fsq.codes(hidden).tolist() == expected


def test_every_code_is_embedded_as_its_levels_are() -> None:
    fsq = quantizer()
    hidden = 5 * torch.randn(50, 16)
    torch.testing.assert_close(fsq.embed(fsq.codes(hidden)), fsq.embed_levels(fsq.levels(hidden)))
    everything = fsq.embed(torch.arange(len(fsq)))
    assert everything.shape == (4096, 16)
    assert len(everything.detach().mul(1e4).round().unique(dim=0)) == 4096


def test_rounding_passes_the_gradient_straight() -> None:
    fsq = quantizer()
    hidden = torch.randn(7, 16, requires_grad=True)
    fsq.levels(hidden).sum().backward()
    straight = hidden.grad.clone()
    hidden.grad = None
    (3.001 * torch.sigmoid(fsq.project_in(hidden))).sum().backward()
    torch.testing.assert_close(straight, hidden.grad)


def test_predictions_read_nothing_but_the_codes() -> None:
    torch.manual_seed(0)
    encoder = SemanticEncoder(SemanticConfig(ENCODER, 2, 1), PHONES).eval()
    fbank, lengths = torch.randn(2, 36, 80), torch.tensor([36, 24])
    direct = encoder(fbank, lengths)
    codes = encoder.codes(fbank, lengths)
    from_codes = encoder.predict(encoder.quantizer.embed(codes), lengths)
    assert [tuple(part.shape) for part in direct] == [(2, 36, 4), (2, 36, 80), (2, 18)]
    for got, expected in zip(from_codes, direct, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_padding_does_not_reach_valid_codes() -> None:
    torch.manual_seed(0)
    encoder = SemanticEncoder(SemanticConfig(ENCODER, 2, 1), PHONES).eval()
    short = torch.randn(1, 24, 80)
    padded = torch.nn.functional.pad(short, (0, 0, 0, 12), value=-5.0)
    alone = encoder.hidden(short, torch.tensor([24]))
    together = encoder.hidden(padded, torch.tensor([24]))[:, :6]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
