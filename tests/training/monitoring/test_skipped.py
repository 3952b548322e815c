"""What is kept of skipped steps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_aqaa.data.loader import batches
from megatron_aqaa.training.monitoring.guards import Past
from megatron_aqaa.training.monitoring.skipped import past_of, sequences_of_ranks, without_nan, write_skipped


class Numbers(torch.utils.data.Dataset):
    """Sequence i holds the number i."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"token_ids": torch.tensor([index])}


@pytest.mark.parametrize(("size", "micro", "ranks"), [(8, 2, 2), (8, 1, 4), (8, 8, 1), (8, 2, 1)])
def test_ranks_read_what_the_loader_gives_them(size: int, micro: int, ranks: int) -> None:
    found = []
    for rank in range(ranks):
        count = size // micro // ranks
        loader = batches(
            Numbers(), micro_batch_size=micro, num_microbatches=count, consumed_samples=8, rank=rank, world_size=ranks
        )
        found.append([int(n) for _ in range(count) for n in next(loader)["token_ids"].flatten()])
    assert sequences_of_ranks(8, size, micro, ranks) == found
    assert sorted(number for numbers in found for number in numbers) == list(range(8, 16))


def write_log(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 9, "lo')
    return path


def step(number: int, loss: float | None, skipped_steps: int = 0, **more: Any) -> dict[str, Any]:
    return {"step": number, "loss": loss, "skipped_steps": skipped_steps, **more}


def test_the_past_by_hand(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "log.jsonl",
        {"step": 0, "validation_loss": 9.0},
        step(1, 1.0),
        step(2, None, 1, skipped="loss is nan"),
        step(3, 3.0, 1),
        step(4, 44.0, 1),  # of a session that was cut off: it came back to step 3
        step(5, 55.0, 1),
        step(4, 4.0, 1),
        {"step": 4, "validation_loss": 9.0},
        step(5, 5.0, 2, skipped="loss 5 is a spike"),
        step(6, 6.0, 3, skipped="loss 6 is a spike"),
    )
    assert past_of(log, 6, window=9) == Past((1.0, 3.0, 4.0), skipped=3, skipped_in_a_row=2)
    assert past_of(log, 5, window=2) == Past((3.0, 4.0), skipped=2, skipped_in_a_row=1)
    assert past_of(log, 4, window=2) == Past((3.0, 4.0), skipped=1, skipped_in_a_row=0)
    assert past_of(log, 0, window=2) == Past()


def test_logs_without_guards_and_no_log_have_a_past_too(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", {"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0})
    assert past_of(log, 2, window=9) == Past((1.0, 2.0))
    assert past_of(tmp_path / "none.jsonl", 2, window=9) == Past()


class Sources:
    def source(self, sequence: int) -> dict[str, Any]:
        return {"documents": [10 * sequence]}


def test_the_file_names_every_document_of_every_rank(tmp_path: Path) -> None:
    facts = {"reason": "loss is nan", "loss": math.nan}
    path = write_skipped(tmp_path, 7, facts, [[0, 1], [2, 3]], Sources())
    assert path == tmp_path / "skipped" / "step_00000007.json"
    content = json.loads(path.read_text())
    assert content["batch"][1] == {
        "data_parallel_rank": 1,
        "sequences": [{"sequence": 2, "documents": [20]}, {"sequence": 3, "documents": [30]}],
    }
    assert (content["step"], content["reason"], content["loss"]) == (7, "loss is nan", None)


def test_json_knows_no_nan() -> None:
    assert without_nan({"a": math.inf, "b": 1.0, "c": "x", "d": 3}) == {"a": None, "b": 1.0, "c": "x", "d": 3}
