"""Reading runs and clusters, and naming what is wrong with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from megatron_aqaa.planner.cluster import load_cluster
from megatron_aqaa.planner.run_file import RunSections, read_run
from megatron_aqaa.training.dpo.config import DPOTrainConfig
from megatron_aqaa.vocabulary import Vocabulary
from tests.planner.sizes import CLUSTERS

EXAMPLES = CLUSTERS.parent
RUNS = [
    path
    for path in sorted(EXAMPLES.glob("*/*.yaml"))
    if {"model", "training"} <= yaml.safe_load(path.read_text()).keys()
]
MODEL = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 4, "num_query_groups": 2}


def write(folder: Path, content: dict[str, object]) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_miniatures_run_is_read() -> None:
    run = read_run(EXAMPLES / "tiny_cpu" / "sft.yaml")
    assert (run.model.num_layers, run.layout.tensor_model_parallel_size) == (4, 2)
    assert (run.batch.sequence_length, run.batch.micro_batch_size, run.batch.global_batch_size) == (256, 8, 8)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_run_among_the_examples_is_read(path: Path) -> None:
    assert read_run(path).batch.sequence_length > 0


def test_every_section_of_a_run_is_known() -> None:
    known = {field.name for field in dataclasses.fields(RunSections)}
    assert {field.name for field in dataclasses.fields(DPOTrainConfig)} <= known


def test_the_vocabulary_file_gives_the_rows(tmp_path: Path) -> None:
    Vocabulary.for_text(160).save(tmp_path / "vocabulary.yaml")
    sections = {"data": {"sequence_length": 8}, "training": {"global_batch_size": 4}}
    path = write(tmp_path, {"model": MODEL, "vocabulary": str(tmp_path / "vocabulary.yaml"), **sections})
    run = read_run(path)
    assert run.model.vocab_size == 5282 and not run.notes
    path = write(tmp_path, {"model": MODEL, "vocabulary": str(tmp_path / "later.yaml"), **sections})
    assert "planned with 74,752 rows" in read_run(path).notes[0]


def test_a_model_alone_needs_the_batch_from_outside(tmp_path: Path) -> None:
    path = write(tmp_path, {"model": MODEL})
    with pytest.raises(ValueError, match=r"missing key data\.sequence_length; give it in the file or as"):
        read_run(path)
    run = read_run(path, ["data.sequence_length=128", "training.global_batch_size=4"])
    assert (run.batch.sequence_length, run.batch.micro_batch_size) == (128, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.hidden_sise=1", r"unknown key model\.hidden_sise; did you mean model\.hidden_size"),
        ("parallel.tensor_parallel=2", r"unknown key parallel\.tensor_parallel"),
        ("data.sequence_length=abc", "must be a whole number, found 'abc'"),
        ("training.global_batch_size=0", "global_batch_size = 0: must be at least 1"),
        ("model.num_query_groups=3", "must be a multiple of num_query_groups = 3"),
        ("modell.a=1", "did you mean model"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: str, message: str) -> None:
    content = {"model": MODEL, "data": {"sequence_length": 128}, "training": {"global_batch_size": 4}}
    with pytest.raises(ValueError, match=message):
        read_run(write(tmp_path, content), [change])


@pytest.mark.parametrize("name", ["h100", "h200", "h800", "a100"])
def test_clusters_load_and_are_sane(name: str) -> None:
    cluster = load_cluster(CLUSTERS / f"{name}.yaml")
    assert cluster.gpus_per_node == 8 and cluster.num_gpus == 8 * cluster.nodes
    for dtype in cluster.peak_tflops:
        assert 0.5 < cluster.sustained(dtype) / cluster.peak(dtype) < 0.9
    for kernel in ("flash", "flex"):
        assert cluster.attention_rate(kernel).forward_tflops < cluster.sustained_tflops["bf16"]
    assert cluster.network_gbs < cluster.nvlink_gbs < cluster.memory_gbs


def test_a_cluster_with_mistakes_is_named(tmp_path: Path) -> None:
    raw = yaml.safe_load((CLUSTERS / "h100.yaml").read_text())
    for change, message in (
        ({"nodes": 0}, "nodes = 0: must be above 0"),
        ({"nvlink": 1}, "unknown key nvlink; did you mean nvlink_gbs"),
        ({"memory_gib": "large"}, "memory_gib"),
    ):
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({**raw, **change}))
        with pytest.raises(ValueError, match=message):
            load_cluster(tmp_path / "cluster.yaml")
    del raw["nvlink_gbs"]
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ValueError, match="missing key nvlink_gbs"):
        load_cluster(tmp_path / "cluster.yaml")


def test_a_rate_that_is_missing_is_named() -> None:
    cluster = load_cluster(CLUSTERS / "a100.yaml")
    with pytest.raises(ValueError, match="sustained_tflops has no rate for fp8, only bf16, fp32"):
        cluster.sustained("fp8")
