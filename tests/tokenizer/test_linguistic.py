from __future__ import annotations

import torch

from megatron_aqaa.tokenizer.centroids import nearest_centroid
from megatron_aqaa.tokenizer.linguistic import LinguisticConfig, LinguisticEncoder, stack_frames
from tests.tokenizer.tiny import ENCODER, PHONES


def test_low_frame_rate_stacking_from_the_definition() -> None:
    fbank = torch.arange(2 * 24 * 3).view(2, 24, 3).float() + 1
    zeros, repeated = stack_frames(fbank, "constant"), stack_frames(fbank, "replicate")
    assert zeros.shape == repeated.shape == (2, 4, 21)
    for code in range(4):
        for offset in range(7):  # frames 6t − 3 … 6t + 3
            frame = 6 * code - 3 + offset
            expected = fbank[:, frame] if 0 <= frame < 24 else torch.zeros(2, 3)
            assert torch.equal(zeros[:, code, 3 * offset : 3 * offset + 3], expected)
            nearest = fbank[:, min(max(frame, 0), 23)]
            assert torch.equal(repeated[:, code, 3 * offset : 3 * offset + 3], nearest)


def test_nearest_centroid_against_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, 8, generator=generator)
    centroids = torch.randn(11, 8, generator=generator)
    distances = torch.stack([(hidden - c).square().sum(-1) for c in centroids], -1)
    assert torch.equal(nearest_centroid(hidden, centroids), distances.argmin(-1))


def test_six_unit_labels_a_code() -> None:
    encoder = LinguisticEncoder(LinguisticConfig(encoder=ENCODER, num_layers=2), PHONES)
    hidden = encoder(torch.randn(2, 36, 80), torch.tensor([24, 36]))
    assert hidden.shape == (2, 6, 32)
    logits = encoder.unit_logits(hidden)
    assert logits.shape == (2, 36, 4)
    torch.testing.assert_close(logits[:, 6:12], encoder.unit_logits(hidden[:, 1:2]))
