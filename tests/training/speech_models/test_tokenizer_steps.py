from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_aqaa.tokenizer.feature_extraction import FeatureConfig, write_features
from megatron_aqaa.tokenizer.feature_store import FeatureStore
from megatron_aqaa.tokenizer.front_ends import FRONT_ENDS
from megatron_aqaa.tokenizer.layers import FeatureNorm
from megatron_aqaa.tokenizer.linguistic import LinguisticConfig, LinguisticEncoder
from megatron_aqaa.tokenizer.semantic import SemanticConfig, SemanticEncoder
from megatron_aqaa.training.speech_models.supervision import IGNORED, FrameLabels
from megatron_aqaa.training.speech_models.tokenizer_steps import (
    Augmentation,
    SemanticWeights,
    SpeechBatches,
    collate,
    evaluation_batches,
    linguistic_losses,
    semantic_losses,
)
from tests.tokenizer.tiny import ENCODER, write_corpus

QUIET = Augmentation(noise_floor=(-30.0, -30.0), gain_deviation=0.0, jitter=0.0, num_masks=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    directory = tmp_path_factory.mktemp("corpus")
    return write_features(FeatureConfig(write_corpus(directory / "speech", 22), directory / "features", 0))


def test_batches_depend_on_the_step_alone_and_cover_an_epoch(store: FeatureStore) -> None:
    labels = FrameLabels(store)
    batches = SpeechBatches(store, labels, list(range(22)), batch_size=4, seed=3)
    first = [batches(step) for step in range(5)]
    again = [SpeechBatches(store, labels, list(range(22)), 4, 3)(step) for step in reversed(range(5))][::-1]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.fbank, b.fbank) and torch.equal(a.phones, b.phones)
    seen = [float(row.sum()) for batch in first for row in batch.fbank]
    assert len(set(seen)) == 20  # 5 batches of 4 different utterances; 2 of 22 are left over
    assert seen != [float(row.sum()) for step in range(5, 10) for row in batches(step).fbank]


def test_batches_hold_like_lengths(store: FeatureStore) -> None:
    batches = SpeechBatches(store, FrameLabels(store), list(range(22)), batch_size=4)
    spans = [np.ptp(batches(step).lengths.numpy()) for step in range(5)]
    assert max(spans) <= 24 < np.ptp(store.lengths)  # two groups; the corpus spans four


def test_padding_is_marked(store: FeatureStore) -> None:
    batch = collate(store, FrameLabels(store), [0, 4])  # 48 and 96 frames
    assert batch.lengths.tolist() == [48, 96] and batch.fbank.shape == (2, 96, 80)
    assert (batch.phones[0, 48:] == IGNORED).all() and (batch.phones[1] >= 0).all()
    assert batch.pitch[0, 24:].isnan().all()
    np.testing.assert_array_equal(batch.phones[0, :48].numpy(), store[0].phones)


def test_evaluation_takes_each_utterance_once(store: FeatureStore) -> None:
    batches = list(evaluation_batches(store, FrameLabels(store), list(range(22)), batch_size=5))
    lengths = torch.cat([batch.lengths for batch in batches])
    assert lengths.tolist() == sorted(store.lengths.tolist())


def test_too_few_utterances_are_told(store: FeatureStore) -> None:
    with pytest.raises(ValueError, match="2 training utterances are fewer than one batch of 4"):
        SpeechBatches(store, FrameLabels(store), [0, 1], batch_size=4)


def test_quiet_augmentation_changes_nothing(store: FeatureStore) -> None:
    fbank = collate(store, FrameLabels(store), [0, 4]).fbank
    torch.testing.assert_close(QUIET(fbank, FeatureNorm(80), FRONT_ENDS["filter_bank"]), fbank, rtol=0, atol=1e-5)


def test_noise_fills_what_is_quieter_and_masks_give_the_mean() -> None:
    torch.manual_seed(0)
    fbank, mean = torch.full((200, 3, 80), -9.0), torch.full((80,), 7.0)
    fbank[:, :, 40:] = 5.0
    augment = Augmentation(noise_floor=(0.0, 0.0), gain_deviation=0.0, jitter=0.0, mask_bands=10, num_masks=1)
    norm = FeatureNorm(80)
    norm.mean.copy_(mean)
    got = augment(fbank, norm, FRONT_ENDS["filter_bank"])
    masked = got == 7.0
    assert torch.equal(masked, masked[:, :1].expand_as(masked))  # the same bands in all frames
    widths = masked[:, 0].sum(-1)
    assert widths.min() == 0 and widths.max() == 10
    quiet, loud = got[:, :, :40][~masked[:, :, :40]], got[:, :, 40:][~masked[:, :, 40:]]
    torch.testing.assert_close(quiet, torch.full_like(quiet, 1.2e-4), rtol=0.1, atol=0)  # log(e^0 + e^−9)
    torch.testing.assert_close(loud, torch.full_like(loud, 5.0067), rtol=1e-4, atol=0)  # log(e^0 + e^5)


def test_losses_do_not_see_padding(store: FeatureStore) -> None:
    torch.manual_seed(0)
    linguistic = LinguisticEncoder(LinguisticConfig(encoder=ENCODER, num_layers=2), store.phones)
    semantic = SemanticEncoder(SemanticConfig(encoder=ENCODER, num_layers=2), store.phones)
    jobs = (
        (linguistic, linguistic_losses(QUIET, FrameLabels(store)), "loss"),
        (semantic, semantic_losses(QUIET, SemanticWeights(), FrameLabels(store)), "mel"),
    )
    for model, losses, name in jobs:
        batches = [collate(store, FrameLabels(store), chosen) for chosen in ([0], [4], [0, 4])]
        short, long, both = (losses(model, batch)[name] for batch in batches)
        torch.testing.assert_close(both, (48 * short + 96 * long) / 144, rtol=1e-4, atol=0)  # means over 48, 96 frames


def test_semantic_losses_add_up_and_reach_the_encoder(store: FeatureStore) -> None:
    torch.manual_seed(0)
    model = SemanticEncoder(SemanticConfig(encoder=ENCODER, num_layers=2), store.phones)
    losses = semantic_losses(QUIET, SemanticWeights(mel=0.25, pitch=2.0, early_unit=0.5), FrameLabels(store))(
        model, collate(store, FrameLabels(store), [0, 1, 2])
    )
    total = losses["unit"] + 0.5 * losses["early_unit"] + 0.25 * losses["mel"] + 2 * losses["pitch"]
    total = total + losses["quantizer"]
    torch.testing.assert_close(losses["loss"], total)
    losses["pitch"].backward()  # alone it must pass the quantizer down to the first layer
    assert model.body.first.product.weight.grad is not None and model.body.first.product.weight.grad.abs().sum() > 0


def test_speech_without_voice_gives_no_pitch_loss(store: FeatureStore) -> None:
    batch = collate(store, FrameLabels(store), [0])
    silent = batch._replace(pitch=torch.full_like(batch.pitch, torch.nan))
    losses = semantic_losses(QUIET, SemanticWeights(), FrameLabels(store))(
        SemanticEncoder(SemanticConfig(encoder=ENCODER, num_layers=1), store.phones), silent
    )
    assert losses["pitch"].item() == 0.0 and losses["loss"].isfinite()
