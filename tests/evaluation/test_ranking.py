"""Text log-probabilities against a loop over positions; the ranking follows them, and audio has no say."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_aqaa import platform
from megatron_aqaa.data.indexed import Document, DocumentWriter
from megatron_aqaa.evaluation.ranking import ranked_first, text_logps
from megatron_aqaa.model import AQAAModel, ModelConfig
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary.for_text(24)
L, S = VOCABULARY.linguistic_start, VOCABULARY.semantic_start
PROMPT = [VOCABULARY.bot, 7, 9, VOCABULARY.eot, VOCABULARY.bot, 8]
TINY = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    init_method_std=0.3,
    params_dtype="fp64",
)


@pytest.fixture(scope="module")
def model() -> Iterator[AQAAModel]:
    platform.initialize(platform.ParallelConfig(), seed=0)
    torch.manual_seed(0)
    yield AQAAModel(TINY, VOCABULARY).eval()
    platform.shutdown()


def answer(text: list[int], groups: int = 1, code: int = 0) -> Document:
    audio = [VOCABULARY.audio_start, *([L + code, L + 1, S, S + 1, S + 2] * groups), VOCABULARY.audio_end]
    said = [*text, *audio, VOCABULARY.eot]
    mask = np.array([0] * len(PROMPT) + [1] * len(said), np.uint8)
    return Document(np.array(PROMPT + said), mask)


@torch.inference_mode()
def naive_logp(model: AQAAModel, document: Document) -> float:
    logps = torch.log_softmax(model(torch.from_numpy(document.token_ids)[None])[0].double(), -1)
    return sum(
        float(logps[place - 1, token_id])
        for place, token_id in enumerate(document.token_ids)
        if document.loss_mask[place] and not VOCABULARY.is_audio(token_id)
    )


def test_logps_are_those_of_a_loop_whatever_the_batch(model: AQAAModel) -> None:
    documents = [answer([10, 11]), answer([12], groups=3), answer([13, 14, 15], groups=2)]
    expected = [naive_logp(model, document) for document in documents]
    assert text_logps(model, documents, VOCABULARY).tolist() == pytest.approx(expected, abs=1e-4)
    assert text_logps(model, documents[1:2], VOCABULARY).tolist() == pytest.approx(expected[1:2], abs=1e-4)


def test_ranking_follows_the_text(model: AQAAModel, tmp_path: Path) -> None:
    texts = [[token_id] for token_id in range(9, 24)]
    by_logp = sorted(texts, key=lambda text: naive_logp(model, answer(text)))
    with DocumentWriter(tmp_path / "pairs", VOCABULARY, with_mask=True) as writer:
        for worse, better in pairwise(by_logp):
            for half in (better, worse), (worse, better):
                for text in half:
                    document = answer(text)
                    writer.add(document.token_ids, document.loss_mask)
    assert ranked_first(model, tmp_path / "pairs", VOCABULARY) == [True, False] * (len(texts) - 1)


def test_half_a_pair_is_refused(model: AQAAModel, tmp_path: Path) -> None:
    with DocumentWriter(tmp_path / "odd", VOCABULARY, with_mask=True) as writer:
        for document in [answer([10])] * 3:
            writer.add(document.token_ids, document.loss_mask)
    with pytest.raises(ValueError, match="3 documents are no pairs"):
        ranked_first(model, tmp_path / "odd", VOCABULARY)
