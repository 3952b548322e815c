"""Context parallelism in two real processes beside one: the core attention of the layer spec, each back end in it."""

from __future__ import annotations

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.model.attention import SqrtAlibiAttention
from megatron_aqaa.model.config import to_transformer_config
from megatron_aqaa.model.layer_spec import rank_rule
from megatron_aqaa.platform import ParallelConfig, zigzag_order, zigzag_shard
from tests.distributed.launch import run
from tests.model.attention_forms import BACKENDS, documents
from tests.model.sizes import TINY, variant

pytestmark = pytest.mark.distributed

CP2 = ParallelConfig(context_parallel_size=2)
MODELS = {"sqrt_alibi": TINY, "rope": variant(position_embedding="rope")}
LENGTH, BATCH = 532, 2
KINDS = ["explicit", "flex"]

Results = dict[str, list[Tensor]]
"""By model and back end: output, then gradients of query, key and value, in zig-zag order."""


def sequences() -> list[Tensor]:
    """Query, key, value and the weights of the output in the loss, [LENGTH, BATCH, heads, D] each."""
    random = torch.Generator().manual_seed(4)
    heads = [TINY.num_attention_heads, TINY.num_query_groups, TINY.num_query_groups, TINY.num_attention_heads]
    return [torch.randn(LENGTH, BATCH, n, 8, dtype=torch.float64, generator=random) for n in heads]


def attended(layout: ParallelConfig) -> Results:
    """This rank's part, with packed documents and with one document per row."""
    platform.initialize(layout)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    rank, size = parallel_state.get_context_parallel_rank(), layout.context_parallel_size
    results = {}
    for name, model in MODELS.items():
        for kind in KINDS:
            backend = BACKENDS[kind](rank_rule(model, groups))
            core = SqrtAlibiAttention(to_transformer_config(model, layout), backend, pg_collection=groups)
            for document_ids in (documents(LENGTH), None):
                *tensors, weights = (zigzag_shard(x, 0, rank, size) for x in sequences())
                for tensor in tensors:
                    tensor.requires_grad_()
                out = core(*tensors, document_ids)
                gradients = torch.autograd.grad((out.view(weights.shape) * weights).sum(), tensors)
                results[f"{name} {kind} {document_ids is not None}"] = [out.detach(), *gradients]
    return results


@pytest.fixture(scope="module")
def serial() -> Results:
    results = attended(ParallelConfig())
    platform.shutdown()
    return results


@pytest.fixture(scope="module")
def parallel() -> Results:
    """Of both ranks, put back into sequence order."""
    ranks, order = run(attended, 2, CP2), torch.tensor(zigzag_order(2)).argsort()
    return {
        name: [torch.cat(parts).unflatten(0, (4, -1))[order].flatten(0, 1) for parts in zip(first, second, strict=True)]
        for (name, first), second in zip(ranks[0].items(), ranks[1].values(), strict=True)
    }


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_give_values_and_gradients_of_one(
    model: str, kind: str, packed: bool, serial: Results, parallel: Results
) -> None:
    name = f"{model} {kind} {packed}"
    torch.testing.assert_close(parallel[name], serial[name])


@pytest.mark.parametrize("model", MODELS)
def test_back_ends_agree(model: str, serial: Results) -> None:
    torch.testing.assert_close(serial[f"{model} flex True"], serial[f"{model} explicit True"])
