from __future__ import annotations

import pytest
import torch

from megatron_aqaa.audio.kaldi_fbank import KaldiFilterBank
from megatron_aqaa.audio.mel import MelConfig, MelSpectrogram
from megatron_aqaa.audio.whisper_mel import WhisperMel
from megatron_aqaa.data.audio_loading.features import FeatureExtractor, Features

LENGTHS = [16000, 15000, 1300, 90_000, 70_001, 200_000, 4000, 4321, 3333]
ALONE = {  # a waveform [1, N] → [F, M], as the tokenizers compute it
    "log_mel": lambda w: MelSpectrogram(MelConfig.tokenizer())(w)[0].T,
    "whisper": lambda w: WhisperMel(80)(w)[0].T,
    "kaldi": lambda w: KaldiFilterBank(80)(w)[0],
}


@pytest.mark.parametrize("kind", ALONE)
def test_together_as_alone(kind: str) -> None:
    torch.manual_seed(0)
    # levels that differ by 60 dB: a loudest value that is looked for in the neighbours would show
    waveforms = [0.3 * torch.randn(n) * 10 ** (-3 * (i % 3) / 2) for i, n in enumerate(LENGTHS)]
    batch = FeatureExtractor(Features(kind), 16000)(waveforms)  # type: ignore[arg-type]
    assert batch.lengths.tolist() == [Features(kind).num_frames(n) for n in LENGTHS]  # type: ignore[arg-type]
    assert batch.values.shape == (len(LENGTHS), batch.lengths.max(), 80)
    for waveform, values, length in zip(waveforms, batch.values, batch.lengths, strict=True):
        torch.testing.assert_close(values[:length], ALONE[kind](waveform[None]), rtol=0, atol=2e-5)
        assert not values[length:].any()


def test_waveforms_are_padded() -> None:
    batch = FeatureExtractor(Features(), 16000)([torch.ones(3), torch.ones(5)])
    assert batch.values.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.lengths.tolist() == [3, 5]


@pytest.mark.parametrize("features", [Features(k) for k in ("waveform", "log_mel", "whisper", "kaldi")], ids=str)
def test_the_shortest_waveform_has_features(features: Features) -> None:
    shortest = torch.randn(features.min_samples)
    for waveforms in ([shortest], [shortest, torch.randn(2000)]):
        batch = FeatureExtractor(features, 16000)(waveforms)
        assert batch.lengths[0] == features.num_frames(features.min_samples) >= 1


def test_groups_hold_eight_seconds() -> None:
    extract = FeatureExtractor(Features("kaldi"), 16000)
    groups = extract._groups([torch.zeros(n) for n in (64_000, 60_000, 50_000, 200_000, 1000, 1000, 1000)])
    assert [[len(w) for w in group] for group in groups] == [[64_000, 60_000], [50_000], [200_000], [1000] * 3]


def test_the_rate_is_checked() -> None:
    with pytest.raises(ValueError, match="sample_rate_hz 24000, but kaldi is computed at 16000 Hz"):
        Features("kaldi").check_rate(24000)
    Features("log_mel", MelConfig(sample_rate_hz=24000)).check_rate(24000)
