"""Log-probabilities of labels from hidden states, output projection included: time and peak memory beside the peers.

    python benchmarks/logps.py                  # miniature and 3B shapes: some twelve minutes on one core
    python benchmarks/logps.py --only miniature
    python benchmarks/logps.py --only miniature --processor-time  # on a busy machine

Every form does forward and backward and ends with the same sums in Megatron's fp32 `main_grad` and in the gradient of
the hidden states. Times: all forms in one process, taking turns. Memory: the high-water mark of one call above what
the inputs and `main_grad` take, each form in a process of its own that has run it once on a tiny shape (none for
`torch.compile`: compiling leaves a mark of its own). On a CPU the 3B shape has half the tokens and two calls a form,
not twenty: a call takes up to ten seconds.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, vocab_parallel_cross_entropy
from megatron.core.transformer import TransformerConfig
from side_by_side import core_milliseconds, medians, milliseconds, on_gpu, save
from torch import Tensor

from megatron_aqaa import ops, platform
from megatron_aqaa.vocabulary import Vocabulary

ON_GPU = on_gpu()


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
    def left_out(self) -> set[str]:
        """Forms that would tell nothing new, or compile for minutes."""
        same = {"eager, chosen"} if self.share == 1.0 else set()
        return same | ({"torch.compile"} if self.shape == "3B" and not ON_GPU else set())


MINIATURE, RELEASED = Vocabulary.for_text(160), Vocabulary()
TINY = Case("warm-up", 64, 64, Vocabulary(64, 16, 32, 120, audio_start=112, audio_end=113), torch.bfloat16, 0.5, 1)
CASES = [
    *(
        Case("miniature", 2048, 256, MINIATURE, dtype, share, 20)
        for dtype in (torch.bfloat16, torch.float32)
        for share in (0.45, 1.0)
    ),
    *(
        Case("3B", 8192 if ON_GPU else 1024, 3072, RELEASED, torch.bfloat16, share, 20 if ON_GPU else 2)
        for share in (0.45, 1.0)
    ),
]


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
        perform_initialization=False, use_cpu_initialization=not ON_GPU,
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


def peak_mib(case: Case, name: str) -> float:
    """Of one call, in this process."""
    step(FORMS[name], inputs(TINY._replace(dtype=case.dtype)))  # loads what the first call loads
    data = inputs(case)
    if ON_GPU:
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.max_memory_allocated()
        step(FORMS[name], data)
        return (torch.accelerator.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what the inputs' making left in the allocator would hide as much of the peak
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes what is resident now
    before = resident_kib("VmRSS")
    step(FORMS[name], data)
    return (resident_kib("VmHWM") - before) / 2**10


def resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def peak_mib_in_fresh_process(index: int, name: str) -> float:
    command = [sys.executable, __file__, "--memory-of", name, "--case", str(index)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure(index: int, clock: Callable[[Callable[[], object]], float]) -> dict:
    """One case: a line per form, and the record for the JSON."""
    case = CASES[index]
    names = [name for name in FORMS if name not in case.left_out]
    memory = {name: peak_mib_in_fresh_process(index, name) for name in names if name != "torch.compile"}
    data = inputs(case)
    times = medians({name: functools.partial(step, FORMS[name], data) for name in names}, case.repeats, clock)
    print(f"--- {case.title}: [{case.tokens}, {case.hidden}] × {case.vocabulary.size}, {case.repeats} repeats")
    for name in names:
        print(
            f"{name:15s} {times[name]:10.2f} ms ({times[name] / times['fused']:5.2f}× fused, "
            f"{times[name] / times['unfused']:5.2f}× unfused)   "
            + (f"{memory[name]:9.1f} MiB ({memory[name] / memory['fused']:6.1f}× fused)" if name in memory else ""),
            flush=True,
        )
    return {
        "case": case.title, "tokens": case.tokens, "hidden": case.hidden, "vocabulary": case.vocabulary.size,
        "repeats": case.repeats, "median_ms": times, "peak_mib": memory,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted({case.shape for case in CASES}))
    parser.add_argument("--processor-time", action="store_true", help="instead of wall time; not on a GPU")
    parser.add_argument("--output", type=Path, help="JSON; default benchmarks/results/logps_<device>.json")
    parser.add_argument("--memory-of", choices=FORMS, help="print one form's peak at --case and stop")
    parser.add_argument("--case", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    platform.initialize(platform.ParallelConfig())
    if args.memory_of:
        print(peak_mib(CASES[args.case], args.memory_of))
        platform.shutdown()
        return
    chosen = [index for index, case in enumerate(CASES) if args.only in (None, case.shape)]
    clock = core_milliseconds if args.processor_time and not ON_GPU else milliseconds
    save("logps", args.output, [measure(index, clock) for index in chosen], threads=1, clock=clock.__name__)
    platform.shutdown()


if __name__ == "__main__":
    main()
