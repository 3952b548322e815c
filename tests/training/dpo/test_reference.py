"""Log-probabilities of the reference: computed once and kept, or by swapping weights; stale ones are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.checkpoint.store import require_checkpoint
from megatron_aqaa.training.dpo import reference as reference_module
from megatron_aqaa.training.dpo.config import DPOTrainConfig
from megatron_aqaa.training.dpo.reference import ReferenceWeights
from megatron_aqaa.training.dpo.reference_cache import checkpoint_digest, data_digest
from megatron_aqaa.training.dpo.train import PreferenceOptimization, train_dpo
from megatron_aqaa.training.lm_state import build_state
from tests.training.dpo.tiny_pairs import VOCABULARY, logged, pair_config, steps, write_pairs, write_start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    write_start(folder)
    return folder


@pytest.fixture(scope="module")
def precomputed(folder: Path) -> Path:
    train_dpo(pair_config(folder, "precomputed"))
    return folder / "precomputed"


@pytest.fixture
def one_process() -> Iterator[None]:
    platform.initialize(platform.ParallelConfig())
    yield
    platform.shutdown()


def table(run: Path, name: str = "train") -> Tensor:
    with safe_open(run / "reference" / f"{name}.safetensors", "pt") as file:
        return file.get_tensor("logps")


def start(config: DPOTrainConfig) -> PreferenceOptimization:
    platform.initialize(config.parallel)
    try:
        return PreferenceOptimization(config, build_state(config, VOCABULARY), VOCABULARY)
    finally:
        platform.shutdown()


def test_both_ways_give_the_same_run(folder: Path, precomputed: Path) -> None:
    train_dpo(pair_config(folder, "swapped", dpo={"reference": "weight_swap"}))
    for ours, theirs in zip(logged(folder / "swapped"), logged(precomputed), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert steps(folder / "swapped")[0]["margin"] == 0  # the same batch through the same weights


def test_a_swap_leaves_no_trace(folder: Path, one_process: None) -> None:
    config = pair_config(folder, "trace", dpo={"reference": "weight_swap"}, model={"params_dtype": "bf16"})
    task = PreferenceOptimization(config, build_state(config, VOCABULARY), VOCABULARY)
    task.step()
    parameters = list(task.state.model_chunks[0].parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    weights: ReferenceWeights = task.references["train"].weights  # type: ignore[attr-defined]
    addresses = [parameter.data_ptr() for parameter in parameters]
    with weights.in_place():
        assert not all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert addresses == [parameter.data_ptr() for parameter in parameters]  # still views into DDP's buffers


def test_the_table_is_kept_and_not_computed_again(
    folder: Path, precomputed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert table(precomputed).isfinite().all()
    assert table(precomputed).shape == (40, 2)
    assert table(precomputed, "validation").shape == (11, 2)
    monkeypatch.setattr(reference_module, "answer_logps", None)  # would be called
    start(pair_config(folder, "precomputed"))


def test_an_interrupted_pass_goes_on_where_it_was(
    folder: Path, precomputed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, plain = [], reference_module.answer_logps

    def with_signal(*arguments: object) -> list[Tensor]:
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(reference_module, "answer_logps", with_signal)
    config = pair_config(folder, "interrupted")
    with pytest.raises(KeyboardInterrupt, match="what is done is kept"):
        train_dpo(config)
    done = table(folder / "interrupted").isfinite().all(1)
    assert 0 < done.sum() < 40
    train_dpo(config)
    assert torch.equal(table(folder / "interrupted")[done], table(precomputed)[done])
    torch.testing.assert_close(table(folder / "interrupted"), table(precomputed), rtol=1e-5, atol=1e-5)
    assert not list((folder / "interrupted" / "reference").glob("*.partial"))


@pytest.fixture
def copied(folder: Path, precomputed: Path, tmp_path: Path) -> Path:
    """A folder of its own with the tables of `precomputed`, but no checkpoint of that run."""
    for name in ("start", "precomputed/reference"):
        shutil.copytree(folder / name, tmp_path / name)
    for path in folder.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"dpo": {"loss_mask": "all"}}, r'loss_mask \(there "text", here "all"\)'),
        ({"model": {"layernorm_epsilon": 1e-3}}, r"model.layernorm_epsilon \(there 1e-05, here 0.001\)"),
    ],
)
def test_a_stale_table_is_refused_by_the_setting_that_differs(
    copied: Path, settings: dict[str, dict[str, object]], part: str
) -> None:
    with pytest.raises(ValueError, match=rf"train.safetensors: made for another reference: {part}\. Set back what"):
        start(pair_config(copied, "precomputed", **settings))


def test_a_table_of_other_data_is_refused(copied: Path) -> None:
    write_pairs(copied / "train", 40, seed=9)
    message = r"train.safetensors: made for another reference: data \(there \S+, here \S+\)\."
    with pytest.raises(ValueError, match=message):
        start(pair_config(copied, "precomputed"))


def test_a_table_of_another_checkpoint_is_refused(copied: Path, precomputed: Path) -> None:
    message = r"train.safetensors: made for another reference: reference_checkpoint \(there \S+, here \S+\)\."
    with pytest.raises(ValueError, match=message):
        start(pair_config(copied, "precomputed", dpo={"reference_checkpoint": precomputed}))


def test_recomputing_and_the_loss_do_not_make_a_table_stale(folder: Path, precomputed: Path) -> None:
    settings = {"loss": "ipo", "beta": 0.3, "nll_weight": 0.1, "nll_mask": "all"}
    table = precomputed / "reference" / "train.safetensors"
    before = table.stat()
    backward = {"recompute_logits": True, "deterministic_embedding_gradient": False}
    start(pair_config(folder, "precomputed", dpo=settings, model=backward))
    assert (table.stat().st_ino, table.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # read, not made anew


def test_a_damaged_table_is_named(folder: Path, precomputed: Path) -> None:
    broken = folder / "broken" / "reference" / "train.safetensors"
    broken.parent.mkdir(parents=True)
    broken.write_bytes((precomputed / "reference" / "train.safetensors").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"train.safetensors: cannot be read .*delete it to compute it anew"):
        start(pair_config(folder, "broken"))


def test_a_swapping_run_is_held_to_the_reference_it_began_with(folder: Path, precomputed: Path) -> None:
    settings = {"reference": "weight_swap"}
    start(pair_config(folder, "held", dpo=settings))
    start(pair_config(folder, "held", dpo={**settings, "loss_mask": "all"}))
    with pytest.raises(ValueError, match=r"weights.json: made for another reference: reference_checkpoint"):
        start(pair_config(folder, "held", dpo={**settings, "reference_checkpoint": precomputed}))


def test_digests_follow_content_not_place(folder: Path, precomputed: Path, tmp_path: Path) -> None:
    original = require_checkpoint(folder / "start")
    copy = shutil.copytree(original, tmp_path / "copy")
    assert checkpoint_digest(copy) == checkpoint_digest(original) != checkpoint_digest(require_checkpoint(precomputed))
    first, second = write_pairs(tmp_path / "a", 3), write_pairs(tmp_path / "b", 3)
    assert data_digest(first) == data_digest(second) != data_digest(folder / "train")
    mask = np.fromfile(f"{first}_mask.bin", np.uint8)
    (1 - mask).tofile(f"{first}_mask.bin")
    assert data_digest(first) != data_digest(second)


def test_the_key_is_in_the_file(precomputed: Path) -> None:
    with safe_open(precomputed / "reference" / "train.safetensors", "pt") as file:
        key = json.loads(file.metadata()["key"])
    parts = {"data", "loss_mask", "sequence_length", "vocabulary", "model", "reference_checkpoint"}
    assert set(key) == parts
