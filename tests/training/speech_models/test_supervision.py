from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from megatron_aqaa.tokenizer.feature_extraction import FeatureConfig, write_features
from megatron_aqaa.tokenizer.feature_store import FeatureStore
from megatron_aqaa.training.speech_models.supervision import FrameLabels, PhoneCtc, PieceCtc, SupervisionConfig, padded
from tests.tokenizer.tiny import write_corpus, write_text_model
from tests.training.speech_models.test_tokenizer_scores import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    directory = tmp_path_factory.mktemp("corpus")
    return write_features(FeatureConfig(write_corpus(directory / "speech", 6), directory / "features", 0))


def test_runs_are_merged_and_silence_left_out() -> None:
    labels = FrameLabels(Store(["_", "a", "b", ";"]))
    assert labels.heard([1, 1, 0, 0, 1, 1, 3, 3, 2, 2, 1, 2, 2]) == [1, 2]


def test_ctc_paths_are_merged_before_blanks_are_left_out() -> None:
    assert PhoneCtc(Store(["_", "a", "b"])).heard([1, 1, 0, 1, 2, 2, 0, 0]) == [1, 1, 2]


def test_the_phones_of_an_utterance_in_order() -> None:
    ctc = PhoneCtc(Store(["_", "a", "_:", "b"], [[0, 1, 1, 2, 1, 3, 3, 0]]))
    assert ctc.targets(0) == [1, 1, 3]
    assert ctc.units == ("<blank>", "a", "_:", "b")


def test_ctc_loss_sums_over_all_paths() -> None:
    logits = torch.randn(1, 4, 3, dtype=torch.float64)
    probabilities = logits.softmax(-1)[0]
    paths = [path for path in product(range(3), repeat=4) if PhoneCtc(Store(["_", "a", "b"])).heard(path) == [2, 1]]
    total = sum(torch.stack([probabilities[t, unit] for t, unit in enumerate(path)]).prod() for path in paths)
    batch = (torch.full((1, 4), -100), torch.tensor([4]), *padded([[2, 1]]))
    loss = PhoneCtc(Store(["_", "a", "b"])).loss(logits, *batch)
    torch.testing.assert_close(loss.double(), -total.log() / 4, rtol=1e-5, atol=1e-6)


def test_targets_longer_than_the_utterance_cost_nothing() -> None:
    logits = torch.randn(2, 4, 3, requires_grad=True)
    ctc = PhoneCtc(Store(["_", "a", "b"]))
    rows = padded([[1, 1, 1, 1, 1], [2]])
    both = ctc.loss(logits, torch.zeros(2, 4), torch.tensor([4, 4]), *rows)
    both.backward()
    assert both.isfinite() and not logits.grad[0].any() and logits.grad[1].any()


def test_pieces_are_those_of_the_text_model(store: FeatureStore, tmp_path: Path) -> None:
    tokenizer = write_text_model(tmp_path)
    ctc = SupervisionConfig("ctc", tmp_path / "text.model").of(store)
    assert isinstance(ctc, PieceCtc) and len(ctc.units) == len(tokenizer) + 1
    assert tokenizer.decode([unit - 1 for unit in ctc.targets(1)]) == "that makes four"


def test_what_is_chosen(store: FeatureStore) -> None:
    assert isinstance(SupervisionConfig().of(store), FrameLabels)
    assert isinstance(SupervisionConfig("ctc").of(store), PhoneCtc)
    with pytest.raises(ValueError, match="only ctc reads it"):
        SupervisionConfig("frames", Path("text.model"))


@pytest.mark.parametrize("kind", ["frames", "ctc"])
def test_features_without_phones_are_told(store: FeatureStore, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(store.index, "phones", [])
    with pytest.raises(ValueError, match="manifest has no phones"):
        SupervisionConfig(kind).of(store)
