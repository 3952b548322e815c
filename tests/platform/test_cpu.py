"""Without a GPU, "cuda" means the CPU in the calls that Megatron makes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from megatron_aqaa.platform import cpu, device
from megatron_aqaa.platform.device import has_gpu

pytestmark = pytest.mark.skipif(has_gpu(), reason="describes machines without a GPU")


def in_a_new_thread(function: Callable[[], Any]) -> Any:
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return outcome[0]


def test_cuda_spellings_mean_the_cpu() -> None:
    cpu.install()
    tensor = torch.zeros(2, device="cuda")
    assert tensor.device == torch.device("cpu") == torch.cuda.current_device() == device()
    assert torch.empty_like(tensor, device=torch.device("cuda:1")).device.type == "cpu"
    assert torch.ones(2, pin_memory=True).is_pinned() is False
    assert tensor.cuda() is tensor
    assert tensor.type() == "torch.cuda.FloatTensor"
    assert tensor.bfloat16().type() == "torch.cuda.BFloat16Tensor"
    assert tensor.type(torch.float64).dtype == torch.float64  # with an argument it still converts
    torch.cuda.synchronize()


def test_random_states_are_those_of_the_cpu() -> None:
    cpu.install()
    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state()
    first = torch.rand(3)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


def test_the_mode_belongs_to_the_thread_that_installed_it() -> None:
    cpu.install()
    assert isinstance(in_a_new_thread(lambda: torch.zeros(1, device="cuda")), Exception)
    assert in_a_new_thread(torch.cuda.current_device) == torch.device("cpu")  # that much is the process's

    def installed_twice() -> str:
        cpu.install()
        cpu.install()
        return torch.zeros(1, device="cuda").device.type

    assert in_a_new_thread(installed_twice) == "cpu"


def test_nothing_is_done_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_gpu", lambda: True)

    def mode_after_install() -> object:
        cpu.install()
        return getattr(cpu._thread, "mode", None)

    assert in_a_new_thread(mode_after_install) is None
