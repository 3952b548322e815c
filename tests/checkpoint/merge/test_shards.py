"""Merging `torch_dist` checkpoints of unlike layouts, saved and loaded by real processes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factories
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader

from megatron_aqaa import platform
from megatron_aqaa.checkpoint import store
from megatron_aqaa.checkpoint.merge.config import load_merge_config
from megatron_aqaa.checkpoint.merge.methods import linear
from megatron_aqaa.checkpoint.merge.plan import MergePlan, plan_merge
from megatron_aqaa.checkpoint.merge.run import run_merge
from megatron_aqaa.model import ModelConfig, build_model
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.training.lm_state import new_state
from megatron_aqaa.training.optimizer import OptimizerConfig
from megatron_aqaa.vocabulary import Vocabulary
from tests.distributed.launch import run

pytestmark = pytest.mark.distributed

VOCABULARY = Vocabulary(text_size=60, linguistic_size=16, semantic_size=32, size=110, audio_start=108, audio_end=109)
MODEL = ModelConfig(
    num_layers=4,
    hidden_size=48,
    ffn_hidden_size=64,
    num_attention_heads=12,
    num_query_groups=2,
    kv_channels=8,
    codebook_type_embedding=True,
    group_position_embedding=True,
    params_dtype="bf16",
)
WIDE = dataclasses.replace(MODEL, params_dtype="fp32")
TP1, TP2, PP2 = (
    ParallelConfig(),
    ParallelConfig(tensor_model_parallel_size=2),
    ParallelConfig(pipeline_model_parallel_size=2),
)
MODELS = {"tp2": (MODEL, TP2), "pp2": (MODEL, PP2), "tp1": (WIDE, TP1)}
WEIGHTS = {"tp2": 5.0, "pp2": 5.0, "tp1": 1.0}


Part = tuple[str, tuple[int, ...], Tensor]
"""Name, place in the whole tensor, elements."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """Checkpoints in `folder`, all their weights as Megatron reads them, and what each layout got of their merge."""

    folder: Path
    plain: dict[str, dict[str, Tensor]]
    parts: list[dict[str, list[Part]]]


def save_merge_load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, list[Part]]]:
    """On each of two ranks; rank 0 merges, as a user would in a process of its own."""
    plain = save(folder)
    if torch.distributed.get_rank() == 0:
        run_merge(plan(folder, folder / "merged"))
    torch.distributed.barrier()
    return plain, {name: list(parts_of(folder / "merged", parallel)) for name, (_, parallel) in MODELS.items()}


def save(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Checkpoints with optimizer state, each of other random weights."""
    for seed, (name, (model, parallel)) in enumerate(MODELS.items()):
        platform.initialize(parallel, seed)
        optimizer = OptimizerConfig(learning_rate=1e-3)
        new_state(model, VOCABULARY, parallel, optimizer, steps=1).save(folder / name, keep=1)
    save_with_objects(folder / "objects")
    checkpoints = {name: str(store.latest_checkpoint(folder / name)) for name in MODELS}
    found = {name: dist_checkpointing.load_plain_tensors(path) for name, path in checkpoints.items()}
    return {
        name: {
            key: value for key, value in state.items() if isinstance(value, Tensor) and not key.startswith("optimizer")
        }
        for name, state in found.items()
    }


def save_with_objects(directory: Path) -> None:
    """A checkpoint of tensors that two ranks hold in halves, and of what some modules keep beside their weights."""
    rank = torch.distributed.get_rank()
    if rank == 0:
        directory.mkdir()
    torch.distributed.barrier()
    weight = torch.arange(12.0).view(3, 4) + 12 * rank
    state = {
        "weight": ShardedTensor.from_rank_offsets("weight", weight, (0, rank, 2)),
        "extra": ShardedObject("layers.core._extra_state", {"scale": rank}, (2,), (rank,)),
        "random": ShardedObject("rng_state", [1], (2,), (rank,)),
        "vocabulary": dataclasses.asdict(VOCABULARY),
    }
    dist_checkpointing.save(state, str(directory))


def parts_of(run_directory: Path, parallel: ParallelConfig) -> Iterator[Part]:
    """What the model of this rank gets from a checkpoint."""
    platform.initialize(parallel)
    chunks = build_model(MODEL, VOCABULARY, parallel)
    store.load_model(chunks, run_directory)
    state = store.model_state(chunks)
    apply_factories(state)  # these split fused matrices
    for part in nested_values(state):
        if isinstance(part, ShardedTensor):
            data = part.data.detach().clone()
            yield part.key, tuple(part.global_offset), data.view((1,) * part.prepend_axis_num + data.shape)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("checkpoints")
    (folder / "tp2").mkdir()
    (folder / "tp2" / "config.yaml").write_text("run: tp2\nmodel: {num_attention_heads: 12}\n")
    ranks = run(save_merge_load, 2, folder)
    return Saved(folder, ranks[0][0], [parts for _, parts in ranks])


@pytest.fixture
def checkpoints(saved: Saved) -> Path:
    return saved.folder


def plan(folder: Path, output: Path, **settings: Any) -> MergePlan:
    config = {
        "merge_method": "linear",
        "models": [{"model": str(folder / name), "parameters": {"weight": weight}} for name, weight in WEIGHTS.items()],
        "out_dtype": "bfloat16",
        **settings,
    }
    path = output.with_suffix(".yml")
    path.write_text(yaml.safe_dump(config))
    return plan_merge(load_merge_config(path), output, shard_bytes=60_000)


def merge_of(plain: dict[str, dict[str, Tensor]], name: str) -> Tensor:
    tensors = [plain[model][name].float() for model in WEIGHTS]
    return next(linear([tensors], weight=list(WEIGHTS.values()))).bfloat16()


@pytest.mark.parametrize("layout", MODELS)
def test_checkpoints_of_unlike_layouts_merge_and_load_at_any(saved, layout):
    parts = [part for rank in saved.parts for part in rank[layout]]
    assert {name for name, _, _ in parts} == saved.plain["tp1"].keys()
    for name, offsets, part in parts:
        place = tuple(slice(start, start + size) for start, size in zip(offsets, part.shape, strict=True))
        assert torch.equal(part, merge_of(saved.plain, name)[place]), name


def test_the_output_is_a_run_at_step_0(saved):
    record = json.loads((saved.folder / "merged" / "merge_record.json").read_text())
    assert [model["left_out"] for model in record["inputs"]] == [
        ["optimizer", "progress", "random_states", "scheduler"]
    ] * 3
    assert len(record["files"]) > 3
    assert store.latest_checkpoint(saved.folder / "merged").name == "step_00000000"
    configuration = yaml.safe_load((saved.folder / "merged" / "config.yaml").read_text())
    assert configuration == {"run": str(saved.folder / "merged"), "model": {"num_attention_heads": 12}}


def test_only_weights_are_kept(checkpoints, tmp_path):
    run_merge(plan(checkpoints, tmp_path / "merged"))
    directory = store.require_checkpoint(tmp_path / "merged")
    metadata = FileSystemReader(directory).read_metadata()
    assert not [name for name in metadata.state_dict_metadata if name.startswith("optimizer")]
    assert torch.load(directory / "common.pt", weights_only=False) == {"vocabulary": dataclasses.asdict(VOCABULARY)}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_objects_beside_the_weights_go_with_them_and_others_are_named(checkpoints, tmp_path):
    models = [{"model": str(checkpoints / "objects"), "parameters": {"weight": 1}}]
    ready = plan(checkpoints, tmp_path / "merged", models=models, out_dtype="float32")
    assert ready.models[0].left_out == ("rng_state",)
    run_merge(ready)
    directory = store.require_checkpoint(tmp_path / "merged")
    for rank in range(2):
        extra = {f"layers.core._extra_state/shard_{rank}_2": b"", "weight": torch.empty(6, 4)}
        torch.distributed.checkpoint.load(extra, checkpoint_id=directory, no_dist=True)
        (data,) = extra[f"layers.core._extra_state/shard_{rank}_2"]
        assert data == {"scale": rank}
        assert torch.equal(extra["weight"], torch.arange(24.0).view(6, 4))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_task_arithmetic_runs_on_fused_shards(saved, checkpoints, tmp_path):
    settings = {"merge_method": "task_arithmetic", "base_model": str(checkpoints / "tp1"), "out_dtype": "float32"}
    models = [{"model": str(checkpoints / name), "parameters": {"weight": 0.5}} for name in ("tp2", "pp2")]
    ready = plan(checkpoints, tmp_path / "merged", models=models, **settings)
    run_merge(ready)
    name = "decoder.layers.self_attention.linear_qkv.weight"
    base, a, b = (saved.plain[model][name].double() for model in ("tp1", "tp2", "pp2"))
    result = {name: torch.empty(base.shape)}
    torch.distributed.checkpoint.load(result, checkpoint_id=store.latest_checkpoint(tmp_path / "merged"), no_dist=True)
    wanted = base + 0.5 * (a - base) + 0.5 * (b - base)
    torch.testing.assert_close(result[name].double(), wanted, rtol=0, atol=1e-6)


def test_digest_of_a_model_does_not_depend_on_the_other_files(checkpoints, tmp_path):
    one = run_merge(plan(checkpoints, tmp_path / "one"))
    two = run_merge(plan(checkpoints, tmp_path / "two", out_dtype="float32"))
    assert [model["sha256"] for model in one["inputs"]] == [model["sha256"] for model in two["inputs"]]
    assert len({model["sha256"] for model in one["inputs"]}) == 3


@pytest.mark.parametrize("method", ["slerp", "ties", "dare_linear", "dare_ties", "model_stock"])
def test_methods_on_whole_matrices_refuse_fused_shards(checkpoints, tmp_path, method):
    parameters = {"slerp": {"t": 0.5}, "model_stock": {}}.get(method, {"weight": 1})
    models = [{"model": str(checkpoints / name)} for name in WEIGHTS][: 2 if method == "slerp" else 3]
    settings = {"base_model": models[0]["model"], "models": models, "parameters": parameters}
    with pytest.raises(ValueError, match=f"{method} looks at one weight matrix .*linear_qkv.*Convert the checkpoints"):
        plan(checkpoints, tmp_path / "merged", merge_method=method, **settings)


def test_values_spread_over_layers_are_refused(checkpoints, tmp_path):
    models = [{"model": str(checkpoints / "tp1"), "parameters": {"weight": [0, 1]}}]
    with pytest.raises(ValueError, match="stack all layers"):
        plan(checkpoints, tmp_path / "merged", models=models)


def test_another_vocabulary_is_refused(checkpoints, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(store.latest_checkpoint(checkpoints / "tp1"), other)
    common = torch.load(other / "common.pt", weights_only=False)
    common["vocabulary"]["audio_end"] = 107
    torch.save(common, other / "common.pt")
    models = [{"model": str(path), "parameters": {"weight": 1}} for path in (checkpoints / "tp1", other)]
    with pytest.raises(ValueError, match="differ in vocabulary: .*'audio_end': 109.*'audio_end': 107"):
        plan(checkpoints, tmp_path / "merged", models=models)


def test_other_heads_of_the_same_shape_are_refused(checkpoints, tmp_path):
    for name, heads in (("a", 12), ("b", 6)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoints").symlink_to(checkpoints / ("tp2" if name == "a" else "pp2") / "checkpoints")
        (tmp_path / name / "config.yaml").write_text(f"model: {{num_attention_heads: {heads}}}\n")
    models = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in ("a", "b")]
    with pytest.raises(ValueError, match="differ in model.num_attention_heads of config.yaml: 12, 6"):
        plan(checkpoints, tmp_path / "merged", models=models)


@pytest.mark.parametrize("file", [".metadata", "common.pt"])
def test_a_damaged_description_is_named(checkpoints, tmp_path, file):
    other = tmp_path / "other"
    shutil.copytree(store.latest_checkpoint(checkpoints / "tp2"), other)
    (other / file).write_bytes((other / file).read_bytes()[:50])
    with pytest.raises(ValueError, match="other: .metadata or common.pt cannot be read"):
        plan(checkpoints, tmp_path / "merged", models=[{"model": str(other), "parameters": {"weight": 1}}])


@pytest.mark.parametrize("fault", ["missing", "truncated"])
def test_a_damaged_checkpoint_is_named(checkpoints, tmp_path, fault):
    other = tmp_path / "other"
    shutil.copytree(store.latest_checkpoint(checkpoints / "tp2"), other)
    file = other / "__1_0.distcp"
    if fault == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"__1_0.distcp: missing or truncated"):
        plan(checkpoints, tmp_path / "merged", models=[{"model": str(other), "parameters": {"weight": 1}}])


def test_a_killed_merge_is_no_checkpoint_and_goes_on(checkpoints, tmp_path):
    class Killed(BaseException):
        pass

    def die(done_bytes: int) -> None:
        if done_bytes > 100_000:
            raise Killed

    with pytest.raises(Killed):
        run_merge(plan(checkpoints, tmp_path / "merged"), die)
    with pytest.raises(ValueError, match="no complete checkpoint"):
        store.require_checkpoint(tmp_path / "merged")
    second = plan(checkpoints, tmp_path / "merged")
    assert 0 < len(second.done) < len(second.files)
    record = run_merge(second)
    whole = run_merge(plan(checkpoints, tmp_path / "whole"))
    for file in second.files:
        assert (tmp_path / "merged" / file.name).read_bytes() == (tmp_path / "whole" / file.name).read_bytes()
    assert record["inputs"] == whole["inputs"]
    assert json.loads((tmp_path / "merged" / "merge_record.json").read_text()) == record
