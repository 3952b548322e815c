"""What `logps.py` compares: the forms of one step from hidden states to gradients, and what they start from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, vocab_parallel_cross_entropy
from megatron.core.transformer import TransformerConfig
from side_by_side import on_gpu
from torch import Tensor

from megatron_aqaa import ops, platform
from megatron_aqaa.vocabulary import Vocabulary


class Case(NamedTuple):
    """A shape, and the share of its positions that carry loss."""

    shape: str
    tokens: int
    hidden: int
    vocabulary: Vocabulary
    dtype: torch.dtype
    share: float
    repeats: int

    @property
    def title(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.shape} {dtype}, loss on {self.share:.0%}"

    @property
    def forms(self) -> list[str]:
        """Of `FORMS`, without one that is the same as another where all positions carry loss."""
        return [name for name in FORMS if self.share < 1 or name != "eager, chosen"]


class Inputs(NamedTuple):
    """What every form starts from."""

    hidden: Tensor
    head: ColumnParallelLinear
    labels: Tensor
    loss_mask: Tensor
    vocab_size: int

    @property
    def weight(self) -> Tensor:
        return self.head.weight


def inputs(case: Case) -> Inputs:
    """Made in place, so that making them leaves no high-water mark behind."""
    rows = case.vocabulary.padded_size(128)
    config = TransformerConfig(
        num_layers=1, hidden_size=case.hidden, num_attention_heads=1, params_dtype=case.dtype,
        perform_initialization=False, use_cpu_initialization=not on_gpu(),
    )  # fmt: skip
    head = ColumnParallelLinear(
        case.hidden, rows, config=config, init_method=torch.nn.init.normal_, bias=False, gather_output=False
    )
    torch.manual_seed(0)
    device = platform.device()
    with torch.no_grad():
        head.weight.normal_(std=case.hidden**-0.5)
    head.weight.main_grad = torch.empty(rows, case.hidden, device=device).zero_()
    head.weight.grad_added_to_main_grad = False
    hidden = torch.empty(case.tokens, case.hidden, dtype=case.dtype, device=device).normal_().requires_grad_()
    labels = torch.randint(0, case.vocabulary.size, (case.tokens,), device=device)
    loss_mask = (torch.rand(case.tokens, device=device) < case.share).float()
    return Inputs(hidden, head, labels, loss_mask, case.vocabulary.size)


def fused(data: Inputs, recompute: bool = True) -> Tensor:
    return ops.linear_vocab_parallel_logps(
        data.hidden, data.weight, data.labels,
        vocab_size=data.vocab_size, group=dist.group.WORLD, loss_mask=data.loss_mask, recompute=recompute,
    ).sum()  # fmt: skip


def fused_kept(data: Inputs) -> Tensor:
    return fused(data, recompute=False)


def unfused(data: Inputs) -> Tensor:
    chosen = data.loss_mask.nonzero()[:, 0]
    logits = data.head(data.hidden.index_select(0, chosen))[0]
    return ops.vocab_parallel_logps(
        logits, data.labels[chosen], vocab_size=data.vocab_size, group=dist.group.WORLD
    ).sum()


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, loss_mask: Tensor, vocab_size: int) -> Tensor:
    logps = F.log_softmax(F.linear(hidden, weight)[:, :vocab_size].float(), -1)
    return (logps.gather(1, labels[:, None])[:, 0] * loss_mask).sum()


def eager(data: Inputs) -> Tensor:
    return plain(data.hidden, data.weight, data.labels, data.loss_mask, data.vocab_size)


def eager_chosen(data: Inputs) -> Tensor:
    chosen = data.loss_mask > 0
    return plain(data.hidden[chosen], data.weight, data.labels[chosen], data.loss_mask[chosen], data.vocab_size)


def compiled(data: Inputs) -> Tensor:
    return _compiled_plain()(data.hidden, data.weight, data.labels, data.loss_mask, data.vocab_size)


def megatron(data: Inputs) -> Tensor:
    logits = data.head(data.hidden[:, None])[0]
    return -(vocab_parallel_cross_entropy(logits, data.labels[:, None])[:, 0] * data.loss_mask).sum()


@functools.cache
def _compiled_plain() -> Callable[..., Tensor]:
    return torch.compile(plain)


FORMS: dict[str, Callable[[Inputs], Tensor]] = {
    "fused": fused,
    "fused, kept": fused_kept,
    "unfused": unfused,
    "eager": eager,
    "eager, chosen": eager_chosen,
    "torch.compile": compiled,
    "Megatron": megatron,
}


def step(form: Callable[[Inputs], Tensor], data: Inputs) -> None:
    """Forward, backward, and what Megatron's DDP does with the gradient of a weight."""
    form(data).backward()
    weight = data.weight
    if not weight.grad_added_to_main_grad:
        weight.main_grad.add_(weight.grad)
    weight.grad, weight.grad_added_to_main_grad, data.hidden.grad = None, False, None
