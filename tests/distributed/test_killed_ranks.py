"""Kill −9 of any rank at any time: the same command goes on from a complete checkpoint, and the losses are the same."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_aqaa.checkpoint.directories import complete_checkpoints, partial_checkpoints, step_of
from tests.distributed.killed_run import WORLD_SIZE, KilledRun
from tests.training.tiny_run import write_data

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

KILLS, STEPS, INTERVAL, SEED = 10, 75, 3, 20261124
MOMENTS = ("any time", "step", "save")
TP2 = {"tensor_model_parallel_size": 2}
CASES = {"sync": (TP2, False), "async": ({}, True)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_data(directory)
    return directory


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(data: Path, run: Path, case: str) -> KilledRun:
    parallel, async_save = CASES[case]
    return KilledRun(data, run, parallel, steps=STEPS, save_interval=INTERVAL, async_save=async_save)


@pytest.fixture
def killed(data: Path, tmp_path: Path, case: str) -> Iterator[KilledRun]:
    run = make(data, tmp_path / "killed", case)
    yield run
    run.end()


@pytest.fixture
def undisturbed(data: Path, tmp_path: Path, case: str) -> dict[int, tuple[float, float]]:
    run = make(data, tmp_path / "undisturbed", case)
    run.start()
    assert run.join() == [0] * WORLD_SIZE, run.errors()
    return losses(run)


def losses(run: KilledRun) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm by step, as they were the last time."""
    return {record["step"]: (record["loss"], record["grad_norm"]) for record in run.records()}


def kill_one(run: KilledRun, moment: str, choose: random.Random) -> tuple[str, int, float]:
    """Kill a rank at `moment`; gives what was drawn."""
    victim, delay_s = choose.randrange(WORLD_SIZE), choose.uniform(0, 0.8 if moment == "any time" else 0.01)
    if moment != "any time":
        wanted = len(run.records()) + choose.randint(INTERVAL, 2 * INTERVAL)
        run.wait_until(lambda: len(run.records()) >= wanted and run.saves() == (moment == "save"))
    time.sleep(delay_s)
    run.kill(victim)
    return moment, victim, delay_s


def test_ten_kills_in_a_row_lose_no_more_than_the_interval(
    killed: KilledRun, undisturbed: dict[int, tuple[float, float]], case: str
) -> None:
    choose = random.Random(f"{SEED} {case}")
    longest = INTERVAL * (2 if case == "async" else 1)  # one save may be under way until the next is due
    history, interrupted_saves = [], 0
    for number in range(KILLS):
        before = killed.records()
        killed.start()
        history.append(kill_one(killed, MOMENTS[number % len(MOMENTS)], choose))
        codes = killed.join()
        assert codes[history[-1][1]] == -9, (history, codes)
        assert all(codes), f"{history}: a rank ended well without its peer: {codes}"
        interrupted_saves += bool(partial_checkpoints(killed.run))
        check_nothing_is_lost(before, killed.records()[len(before) :], longest, history)
    killed.start()
    assert killed.join() == [0] * WORLD_SIZE, killed.errors()
    assert losses(killed) == undisturbed and len(undisturbed) == STEPS
    print(f"{case}: {interrupted_saves} saves were cut; kills (moment, rank, delay): {history}")
    assert interrupted_saves > 0, history
    assert [step_of(path) for path in complete_checkpoints(killed.run)] == [STEPS - INTERVAL, STEPS]
    assert not partial_checkpoints(killed.run)


def check_nothing_is_lost(before: list[dict], after: list[dict], longest: int, history: list) -> None:
    if before and after:
        lost = before[-1]["step"] - (after[0]["step"] - 1)
        assert lost <= longest, f"{history}: {lost} steps were done again"
