"""Megatron's static KV cache: token-by-token logits are those of the whole sequence."""

from __future__ import annotations

import threading

import pytest
import torch
from megatron.core.inference.contexts import StaticInferenceContext

from megatron_aqaa.model import AQAAModel, ModelConfig, build_model
from tests.model.sizes import TINY, VOCABULARY, variant

LENGTH, PROMPT = 24, 9


def incremental_logits(model: AQAAModel, token_ids: torch.Tensor, document_ids: torch.Tensor | None) -> torch.Tensor:
    """Logits [B, LENGTH − PROMPT + 1, V] of the prompt's last position and of every later one, with a cache."""
    context = StaticInferenceContext(token_ids.shape[0], LENGTH)
    outputs = []
    for start, stop in [(0, PROMPT), *((i, i + 1) for i in range(PROMPT, LENGTH))]:
        documents = None if document_ids is None else document_ids[:, :stop]
        outputs.append(model(token_ids[:, start:stop], documents, inference_context=context))
        context.sequence_len_offset = stop
    return torch.cat(outputs, dim=1)


def greedy_matches(model: AQAAModel, document_ids: torch.Tensor | None = None) -> None:
    token_ids = torch.randint(0, VOCABULARY.size, (3, LENGTH), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = model.eval()(token_ids, document_ids)[:, PROMPT - 1 :]
        torch.testing.assert_close(incremental_logits(model, token_ids, document_ids), expected)


@pytest.mark.parametrize("model_config", [TINY, variant(position_embedding="rope"), variant(num_query_groups=1)])
def test_incremental_equals_whole(one_process: None, model_config: ModelConfig) -> None:
    greedy_matches(build_model(model_config, VOCABULARY)[0])


def test_left_padding_changes_nothing(one_process: None) -> None:
    model = build_model(TINY, VOCABULARY)[0].eval()
    prompt = torch.randint(0, VOCABULARY.size, (1, PROMPT))
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), prompt], dim=1)
    document_ids = torch.cat([torch.full((1, 4), -1), torch.zeros(1, PROMPT, dtype=torch.long)], dim=1)
    with torch.inference_mode():
        alone = model(prompt)[:, -1]
        beside_padding = model(padded, document_ids, inference_context=StaticInferenceContext(1, LENGTH))[:, -1]
    torch.testing.assert_close(beside_padding, alone)


def test_inference_runs_in_a_thread_that_installed_nothing(one_process: None) -> None:
    model = build_model(TINY, VOCABULARY)[0]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            greedy_matches(model)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
