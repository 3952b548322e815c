from __future__ import annotations

import pytest
import torch

from megatron_aqaa.tokenizer.quantizers import VqEmaConfig
from megatron_aqaa.tokenizer.semantic import SemanticConfig, SemanticEncoder
from megatron_aqaa.tokenizer.whisper import WhisperConfig
from tests.tokenizer.tiny import ENCODER, PHONES

KINDS = {
    "convnext": SemanticConfig(encoder=ENCODER, num_layers=2),
    "whisper": SemanticConfig(kind="whisper", whisper=WhisperConfig(32, 2, 2)),
    "vq_ema": SemanticConfig(
        encoder=ENCODER, num_layers=2, quantizer="vq_ema", vq_ema=VqEmaConfig(num_codes=64, code_size=8)
    ),
}
NUM_MELS = {"filter_bank": 80, "whisper": 128}


@pytest.fixture(params=KINDS)
def encoder(request: pytest.FixtureRequest) -> SemanticEncoder:
    torch.manual_seed(0)
    return SemanticEncoder(KINDS[request.param], PHONES).eval()


def features(encoder: SemanticEncoder, batch: int, frames: int) -> torch.Tensor:
    return torch.randn(batch, frames, NUM_MELS[encoder.config.front_end])


def test_predictions_read_nothing_but_the_codes(encoder: SemanticEncoder) -> None:
    fbank, lengths = features(encoder, 2, 36), torch.tensor([36, 24])
    direct = encoder(fbank, lengths)
    codes = encoder.codes(fbank, lengths)
    from_codes = encoder.predict(encoder.quantizer.embed(codes), lengths)
    num_mels = fbank.shape[2]
    assert [tuple(part.shape) for part in direct] == [(2, 36, 4), (2, 36, num_mels), (2, 18), ()]
    for got, expected in zip(from_codes[:3], direct[:3], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_padding_does_not_reach_valid_codes(encoder: SemanticEncoder) -> None:
    short = features(encoder, 1, 24)
    padded = torch.nn.functional.pad(short, (0, 0, 0, 12), value=-5.0)
    alone = encoder.hidden(short, torch.tensor([24]))
    together = encoder.hidden(padded, torch.tensor([24]))[:, :6]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_mel_and_pitch_are_read_from_a_code_and_its_neighbours(encoder: SemanticEncoder) -> None:
    embedded, lengths = torch.randn(1, 9, encoder.config.width), torch.tensor([36])
    changed = embedded.clone()
    changed[:, 4] += 1
    one, other = encoder.predict(embedded, lengths), encoder.predict(changed, lengths)
    differs = (one.mel != other.mel).any(-1)[0].nonzero()[:, 0]
    assert differs.min() == 12 and differs.max() == 23  # codes 3, 4 and 5
