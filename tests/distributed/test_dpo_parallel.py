"""Preference optimization at every layout gives the numbers of one process, from the start and after a resume."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.checkpoint.store import require_checkpoint
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.training.dpo.config import DPOTrainConfig
from megatron_aqaa.training.dpo.step import DPOResult
from megatron_aqaa.training.dpo.train import PreferenceOptimization
from megatron_aqaa.training.lm_state import build_state
from tests.distributed.launch import run
from tests.training.dpo.tiny_pairs import VOCABULARY, pair_config, write_start

pytestmark = pytest.mark.distributed

SERIAL = ParallelConfig()
TP2 = ParallelConfig(tensor_model_parallel_size=2)
TP2_SP = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
PP2 = ParallelConfig(pipeline_model_parallel_size=2)
PP2_INTERLEAVED = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
CP2 = ParallelConfig(context_parallel_size=2)
TP2_PP2_SP = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True)


class Case(NamedTuple):
    """Settings of a run."""

    dpo: dict[str, Any]
    model: dict[str, Any]


CASES = {
    "text": Case({}, {}),
    "ipo and NLL, swapped": Case(
        {"loss": "ipo", "reference": "weight_swap", "nll_weight": 0.2, "nll_mask": "all"},
        {"group_position_embedding": True, "codebook_type_embedding": True, "recompute_logits": True},
    ),
}
OF_TWO = [
    ("TP2", "text", TP2), ("PP2", "text", PP2), ("DP2", "text", SERIAL), ("CP2", "text", CP2),
    ("TP2+SP", "ipo and NLL, swapped", TP2_SP), ("interleaved PP2", "ipo and NLL, swapped", PP2_INTERLEAVED),
    ("DP2", "ipo and NLL, swapped", SERIAL), ("CP2", "ipo and NLL, swapped", CP2),
]  # fmt: skip
OF_FOUR = [("TP2xPP2+SP", name, TP2_PP2_SP) for name in CASES] + [("TP2xDP2", "text", TP2)]
Layouts = list[tuple[str, str, ParallelConfig]]


class Run(NamedTuple):
    """Two steps from the start and the held-out pairs then; two steps after a resume; the reference's table if any."""

    steps: list[DPOResult]
    validation: dict[str, float]
    resumed: list[DPOResult]
    table: Tensor | None


def config_of(folder: Path, name: str, case: str, layout: ParallelConfig) -> DPOTrainConfig:
    dpo, model = CASES[case]
    return pair_config(
        folder, name, parallel=dataclasses.asdict(layout), dpo=dpo, model=model, micro_batch_size=1, steps=100
    )


def started(config: DPOTrainConfig, seed: int) -> PreferenceOptimization:
    """A run from its start, or from its checkpoint; equal weights can only come from there."""
    platform.initialize(config.parallel, seed)
    return PreferenceOptimization(config, build_state(config, VOCABULARY), VOCABULARY)


def advance(task: PreferenceOptimization, steps: int) -> list[DPOResult]:
    results = []
    for _ in range(steps):
        results.append(task.step())
        task.state.scheduler.step(1)
        task.state.step += 1
        task.state.consumed_samples += task.config.training.global_batch_size
    return results


def table_of(config: DPOTrainConfig) -> Tensor | None:
    path = config.run / "reference" / "train.safetensors"
    return load_file(path)["logps"] if path.exists() else None


def run_serial(folder: Path, case: str) -> Run:
    config = config_of(folder, "serial", case, SERIAL)
    task = started(config, seed=1)
    steps, validation = advance(task, 2), task.validation()
    task.state.save(config.run, keep=1)
    return Run(steps, validation, advance(task, 2), table_of(config))


def on_layouts(folder: Path, layouts: Layouts) -> dict[tuple[str, str], Run]:
    """On one rank: each layout from the start, and from the checkpoint of the one process."""
    runs = {}
    for seed, (name, case, layout) in enumerate(layouts):
        config = config_of(folder / case, name, case, layout)
        task = started(config, seed)
        steps, validation = advance(task, 2), task.validation()
        resumed = started(dataclasses.replace(config, run=config.run / "resumed"), seed)
        runs[name, case] = Run(steps, validation, advance(resumed, 2), table_of(config))
    return runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dpo")


@pytest.fixture(scope="module")
def serial(folder: Path) -> dict[str, Run]:
    """One process, whose checkpoint after two steps then lies in a run directory of every layout."""
    runs = {}
    for case, settings in CASES.items():
        write_start(folder / case, settings.model)
        runs[case] = run_serial(folder / case, case)
        platform.shutdown()
        checkpoint = require_checkpoint(folder / case / "serial")
        for name in {name for name, of_case, _ in [*OF_TWO, *OF_FOUR] if of_case == case}:
            shutil.copytree(checkpoint, folder / case / name / "resumed" / "checkpoints" / checkpoint.name)
    return runs


@pytest.fixture(scope="module")
def two(serial: dict[str, Run], folder: Path) -> list[dict[tuple[str, str], Run]]:
    return run(on_layouts, 2, folder, OF_TWO)


@pytest.fixture(scope="module")
def four(serial: dict[str, Run], folder: Path) -> list[dict[tuple[str, str], Run]]:
    return run(on_layouts, 4, folder, OF_FOUR)


def assert_equal(found: Run, expected: Run) -> None:
    for name in ("steps", "resumed"):
        for ours, theirs in zip(getattr(found, name), getattr(expected, name), strict=True):
            assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
            assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
            assert ours.values == pytest.approx(theirs.values, rel=1e-5, abs=1e-5)
    assert found.validation == pytest.approx(expected.validation, rel=1e-5, abs=1e-5)
    if expected.table is not None:
        assert found.table is not None
        assert (found.table - expected.table).abs().max() < 1e-5 * expected.table.abs().max()


@pytest.mark.parametrize(("name", "case"), [layout[:2] for layout in OF_TWO])
def test_two_processes(name: str, case: str, serial: dict[str, Run], two: list[dict[tuple[str, str], Run]]) -> None:
    for runs in two:
        assert_equal(runs[name, case], serial[case])


@pytest.mark.parametrize(("name", "case"), [layout[:2] for layout in OF_FOUR])
def test_four_processes(name: str, case: str, serial: dict[str, Run], four: list[dict[tuple[str, str], Run]]) -> None:
    for runs in four:
        assert_equal(runs[name, case], serial[case])


@pytest.mark.parametrize("case", CASES)
def test_the_comparison_is_of_something(case: str, serial: dict[str, Run]) -> None:
    first, second = serial[case].steps
    assert abs(second.loss - first.loss) > 1e-3 * first.loss
    assert abs(second.values["margin"]) > 1e-2
    assert abs(serial[case].resumed[1].grad_norm - second.grad_norm) > 1e-3 * second.grad_norm
