"""Chains: order, settings of stages, arrays."""

from __future__ import annotations

import re
from typing import Any

import pytest

from megatron_aqaa.config import parse_config
from megatron_aqaa.slurm.chain import ChainConfig, with_arrays
from megatron_aqaa.slurm.submit import sbatch_options


def chain(*stages: dict[str, Any], **settings: Any) -> ChainConfig:
    filled = [{"command": ["tools/train.py", "run.yaml"], **stage} for stage in stages]
    return parse_config(ChainConfig, {"stages": filled, **settings})


def test_a_stage_has_what_the_chain_has_and_its_own() -> None:
    found = chain(
        {"name": "sft"},
        {"name": "merge", "needs": ["sft"], "slurm": {"nodes": 1}, "preflight": {"message_mib": 8}},
        slurm={"nodes": 4, "partition": "long"},
        preflight={"timeout_s": 9},
    ).jobs()
    assert [(job.slurm.nodes, job.slurm.partition) for job in found] == [(4, "long"), (1, "long")]
    assert [(job.preflight.timeout_s, job.preflight.message_mib) for job in found] == [(9, 64), (9, 8)]
    assert [job.needs for job in found] == [(), ("sft",)]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"name": "a", "needs": ["b"]}, {"name": "b"}], "stage a: needs 'b', which is no stage before it"),
        ([{"name": "a"}, {"name": "a"}], "stage a: there are two"),
        ([{"name": "a", "need": []}], "stage a: unknown key need; did you mean needs?"),
        ([{"name": "a", "slurm": {"node": 1}}], "stage a, slurm: unknown key node; did you mean nodes?"),
        ([{"name": "a", "preflight": {"timeout_s": -1}}], "preflight.timeout_s = -1"),
        ([{"name": "a b"}], "'a b' must be of letters"),
    ],
)
def test_mistakes_name_the_stage(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        chain(*stages).jobs()


def test_an_array_is_followed_by_the_job_that_ends_it() -> None:
    data = {"name": "data", "command": ["tools/prepare_chat.py", "chat.yaml"], "slurm": {"array_size": 8}}
    jobs = with_arrays(
        chain({"name": "first"}, {**data, "needs": ["first"]}, {"name": "sft", "needs": ["data"]}).jobs()
    )
    assert [(job.name, job.needs, job.slurm.array_size) for job in jobs] == [
        ("first", (), None),
        ("data_shards", ("first",), 8),
        ("data", ("data_shards",), None),
        ("sft", ("data",), None),
    ]


def test_what_is_needed_must_succeed() -> None:
    assert sbatch_options(["7", "9"]) == ["--dependency=afterok:7:9", "--kill-on-invalid-dep=yes"]
    assert sbatch_options([]) == []
