"""The masked step equals a naive loop over full logits; a run starts at its closed form, learns, and resumes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.checkpoint.store import complete_checkpoints
from megatron_aqaa.config import load_config
from megatron_aqaa.data.preferences import Pair
from megatron_aqaa.training.dpo import train as dpo_module
from megatron_aqaa.training.dpo.config import DPOTrainConfig
from megatron_aqaa.training.dpo.step import SUMS, DPOResult, answer_logps, answer_sums, dpo_step
from megatron_aqaa.training.dpo.train import PreferenceOptimization, check_first_step, train_dpo
from megatron_aqaa.training.lm_state import build_state
from tests.training.dpo.tiny_pairs import VOCABULARY, pair_config, steps, write_start
from tests.training.tiny_run import logged

LOGGED = {
    "step", "loss", "preference_loss", "reward_chosen", "reward_rejected", "margin", "accuracy", "logp_accuracy",
    "drift_chosen", "drift_rejected", "nll", "grad_norm", "learning_rate", "targets", "skipped_steps",
}  # fmt: skip
OF_TRAINING = {"step", "grad_norm", "learning_rate", "targets", "skipped_steps"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpo")
    write_start(folder)
    return folder


@pytest.fixture(scope="module")
def straight(folder: Path) -> Path:
    train_dpo(pair_config(folder, "straight", keep_checkpoints=9))
    return folder / "straight"


@pytest.fixture
def one_process() -> Iterator[None]:
    platform.initialize(platform.ParallelConfig())
    yield
    platform.shutdown()


def task_of(config: DPOTrainConfig) -> PreferenceOptimization:
    return PreferenceOptimization(config, build_state(config, VOCABULARY), VOCABULARY)


def naive_logp(task: PreferenceOptimization, pair: Pair, kind: str) -> Tensor:
    """[2]: every answer alone, logits of all positions, one target after the other."""
    sums = []
    for answer in pair:
        ids = torch.from_numpy(answer.token_ids)
        logits = task.state.model_chunks[0](token_ids=ids[None])[0].double()
        total = logits.new_zeros(())
        for position in range(1, len(ids)):
            audio = VOCABULARY.is_audio(int(ids[position]))
            if answer.loss_mask[position] and kind in ("all", "audio" if audio else "text"):
                total = total + logits[position - 1].log_softmax(-1)[ids[position]]
        sums.append(total)
    return torch.stack(sums)


def naive_loss(task: PreferenceOptimization, numbers: list[int]) -> Tensor:
    """Mean over pairs, with the reference's log-probabilities from the table."""
    dpo, reference = task.config.dpo, task.references["train"].table  # type: ignore[attr-defined]
    losses = []
    for number in numbers:
        pair = task.pairs["train"][number]
        chosen, rejected = naive_logp(task, pair, dpo.loss_mask) - reference[number]
        loss = -torch.nn.functional.logsigmoid(dpo.beta * (chosen - rejected))
        ids, mask = torch.from_numpy(pair.chosen.token_ids), torch.from_numpy(pair.chosen.loss_mask) > 0
        of_kind = {"all": mask, "audio": mask & VOCABULARY.is_audio(ids), "text": mask & ~VOCABULARY.is_audio(ids)}
        count = int(of_kind[dpo.nll_targets].sum())
        losses.append(loss - dpo.nll_weight * naive_logp(task, pair, dpo.nll_targets)[0] / count)
    return torch.stack(losses).mean()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("recompute_logits", [False, True])
@pytest.mark.parametrize("mask", ["text", "audio", "all"])
def test_masked_step_equals_a_naive_loop(folder: Path, mask: str, recompute_logits: bool) -> None:
    nll = {"nll_weight": 0.3, "nll_mask": "audio"}
    config = pair_config(
        folder, f"naive {mask}", dpo={"loss_mask": mask, **nll}, model={"recompute_logits": recompute_logits}
    )
    task = task_of(config)
    task.step()  # away from the reference
    window = task.references["train"].attach(next(task.training_windows))
    numbers = [int(n) for batch in window[0] for n in batch["pairs"].flatten() if n >= 0]
    chunk = task.state.model_chunks[0]
    chunk.zero_grad_buffer()
    expected = naive_loss(task, numbers)
    expected.backward()
    squares = (parameter.main_grad.double().square().sum().item() for parameter in chunk.parameters())
    norm = math.sqrt(sum(squares))
    result = dpo_step(task.state.model_chunks, task.state.optimizer, window, config.dpo, task.shape)
    assert result.loss == pytest.approx(expected.item(), rel=1e-5)
    assert result.grad_norm == pytest.approx(norm, rel=1e-4)


@pytest.mark.usefixtures("one_process")
def test_only_positions_that_are_read_reach_the_head(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(pair_config(folder, tmp_path.name))
    operator, rows = sys.modules["megatron_aqaa.ops.linear_vocab_parallel_logps"], []
    projected = operator._checked_logps  # type: ignore[attr-defined]
    monkeypatch.setattr(
        operator, "_checked_logps", lambda hidden, *rest: rows.append(len(hidden)) or projected(hidden, *rest)
    )
    window = next(task.training_windows)
    answer_logps(task.state.model_chunks, window, task.shape)
    assert rows == [int(batch["preference_mask"].sum()) for batch in window[0]]
    assert sum(rows) < sum(int((batch["document_ids"] >= 0).sum()) for batch in window[0]) / 2


def test_answer_sums_by_hand() -> None:
    values = torch.tensor([[1.0, 2, 4, 8, 16], [1, 2, 4, 8, 16]], dtype=torch.float64)
    ids = torch.tensor([[0, 0, 1, 2, -1], [0, 1, 1, -1, -1]])
    assert answer_sums(values, ids, 2).tolist() == [[[3, 4], [8, 0]], [[1, 6], [0, 0]]]
    assert answer_sums(values, ids, 2).dtype == torch.float64


def test_log_has_every_value_and_starts_at_the_closed_form(straight: Path) -> None:
    records = steps(straight)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert set(records[0]) == LOGGED
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert records[0]["margin"] == pytest.approx(0, abs=1e-4)
    for record in records:
        assert record["margin"] == pytest.approx(record["reward_chosen"] - record["reward_rejected"])


def test_held_out_pairs_are_looked_at_before_and_after(straight: Path) -> None:
    first, last = (record for record in logged(straight) if "validation_loss" in record)
    assert (first["step"], last["step"]) == (0, 4)
    assert set(first) == {"step", *(f"validation_{name}" for name in LOGGED - OF_TRAINING)}
    assert first["validation_loss"] == pytest.approx(math.log(2), abs=1e-5)
    # eleven pairs, none lost to a batch that is not full
    assert first["validation_logp_accuracy"] * 11 == pytest.approx(round(first["validation_logp_accuracy"] * 11))
    assert last["validation_drift_chosen"] != 0


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("loss", ["sigmoid", "cdpo", "ipo", "ipo_sum", "hinge", "robust"])
def test_every_loss_starts_at_its_value_and_widens_the_margin(folder: Path, loss: str) -> None:
    """All in one run directory: the table of the reference does not depend on the loss."""
    dpo = {"loss": loss, **({"label_smoothing": 0.1} if loss in ("cdpo", "robust") else {})}
    config = pair_config(folder, "losses", dpo=dpo, steps=6)
    task = task_of(dataclasses.replace(config, data=dataclasses.replace(config.data, validation=())))
    results = []
    for _ in range(6):
        results.append(task.step())
        task.state.step += 1
    assert results[0].loss == pytest.approx(config.dpo.value_at_reference, rel=1e-4)
    assert results[-1].values["margin"] > results[0].values["margin"] + 1e-3


def test_resume_is_exact_over_two_steps(folder: Path, straight: Path) -> None:
    first, run = complete_checkpoints(straight)[0], folder / "resumed"
    shutil.copytree(first, run / "checkpoints" / first.name)
    train_dpo(pair_config(folder, "resumed"))
    assert logged(run) == [record for record in logged(straight) if record["step"] > 2]


def test_signal_saves_and_the_same_command_continues(
    folder: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, plain_step = iter(range(9)), dpo_module.dpo_step

    def step_with_signal(*arguments: object) -> DPOResult:
        if next(count) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return plain_step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dpo_module, "dpo_step", step_with_signal)
    config = pair_config(folder, "stopped", save_interval=100)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 3, saved"):
        train_dpo(config)
    train_dpo(config)
    assert logged(folder / "stopped") == logged(straight)


def test_another_start_than_the_reference_is_not_held_to_the_closed_form(folder: Path, straight: Path) -> None:
    config = pair_config(folder, "elsewhere", init_from=straight, dpo={"reference_checkpoint": folder / "start"})
    train_dpo(config)
    assert steps(folder / "elsewhere")[0]["margin"] > 1e-3


def test_a_reference_that_is_not_the_start_is_caught_at_step_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = dpo_module.precomputed_table
    monkeypatch.setattr(dpo_module, "precomputed_table", lambda *arguments: plain(*arguments) + 1.0)
    with pytest.raises(
        FloatingPointError, match=r"sigmoid must be 0\.693147 .*differ by 0\.\d+ per token.*not those of"
    ):
        train_dpo(pair_config(folder, "caught"))
    assert not complete_checkpoints(folder / "caught")


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_first_step_check_by_hand(folder: Path, loss: str) -> None:
    config = pair_config(folder, "unused", dpo={"loss": loss})
    zeros = dict.fromkeys(("nll", *SUMS[4:10]), 0.0)
    right = DPOResult(
        loss=9.0, preference_loss=config.dpo.value_at_reference, distance=0.0, tokens_per_pair=30, **zeros
    )
    check_first_step(right, config)
    with pytest.raises(FloatingPointError):
        check_first_step(dataclasses.replace(right, preference_loss=right.preference_loss * 1.01), config)
    with pytest.raises(FloatingPointError):
        check_first_step(dataclasses.replace(right, distance=1e-3), config)


def test_settings_are_kept_beside_the_checkpoints(folder: Path, straight: Path) -> None:
    assert load_config(DPOTrainConfig, straight / "config.yaml") == pair_config(folder, "straight", keep_checkpoints=9)
    assert json.loads((straight / "pairs.json").read_text())["train"] == {
        "total": 40, "used": 40, "identical": 0, "without_targets": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("dpo", {"nll_mask": "text"}, "nll_mask: text has no effect with nll_weight: 0"),
        ("dpo", {"nll_weight": -1}, "nll_weight = -1.0: must be at least 0"),
        ("dpo", {"label_smoothing": 0.1}, "has no effect on sigmoid"),
        ("training", {"init_from": None}, "starts from a checkpoint"),
        ("training", {"grow_vocabulary": True}, "make new rows, which no reference knows"),
    ],
)
def test_settings_without_effect_are_errors(folder: Path, section: str, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair_config(folder, "x", **({"dpo": values} if section == "dpo" else values))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("packing", "cut", "pairs are never torn"),
        ("text_loss_weight", 2, "use dpo.loss_mask"),
        ("audio_noise_ratio", 0.1, "audio_noise_ratio and cache_directory have no effect"),
        ("train", {"train": 2.0}, r"weights must be 1, found \[2.0\]"),
    ],
)
def test_data_settings_without_effect_are_errors(folder: Path, name: str, value: object, message: str) -> None:
    config = pair_config(folder, "x")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, data=dataclasses.replace(config.data, **{name: value}))
