"""Imported checkpoints in real Megatron models at every layout: the logits are those of the definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from megatron.core import parallel_state
from safetensors.torch import load_file
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.checkpoint import store
from megatron_aqaa.checkpoint.conversion.export_huggingface import ExportOptions, plan_export
from megatron_aqaa.checkpoint.conversion.import_huggingface import ImportOptions, plan_import
from megatron_aqaa.checkpoint.conversion.reshard import plan_reshard
from megatron_aqaa.checkpoint.conversion.run import run_conversion
from megatron_aqaa.config import parse_config
from megatron_aqaa.model import ModelConfig, build_model
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.vocabulary import Vocabulary
from tests.checkpoint.conversion import naive_decoder
from tests.checkpoint.conversion.tiny_huggingface import configuration, write_model
from tests.distributed.launch import run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

LENGTH = 9
LAYOUTS = {
    "tp1": ParallelConfig(),
    "tp2": ParallelConfig(2),
    "pp2": ParallelConfig(1, 2),
    "tp2_pp2": ParallelConfig(2, 2),
    "pp2_vpp2": ParallelConfig(1, 2, 2),
    "tp4": ParallelConfig(4),  # more ranks than groups: a group's rows are split
}
MODELS: dict[str, dict[str, Any]] = {
    "step1": configuration("step1"),
    "step1_odd_heads": configuration("step1", hidden_size=60, num_attention_groups=12),  # heads of 5
    "llama": configuration("llama", head_dim=10),
    "llama_tied_mha": configuration("llama", tie_word_embeddings=True, num_key_value_heads=12),
    "qwen2": configuration("qwen2"),
    "qwen2_tied": configuration("qwen2", tie_word_embeddings=True),
}
SAVED_AT = {"step1": LAYOUTS["tp4"], "llama": LAYOUTS["tp2_pp2"], "qwen2": LAYOUTS["pp2_vpp2"]}


def token_ids() -> Tensor:
    return torch.randint(0, 110, (2, LENGTH), generator=torch.Generator().manual_seed(3))


def logits_of(directory: Path, parallel: ParallelConfig) -> Tensor | None:
    """In float64, on the ranks of the last stage."""
    platform.initialize(parallel)
    values = yaml.safe_load((directory / "config.yaml").read_text())
    model = parse_config(ModelConfig, {**values["model"], "params_dtype": "fp64"})
    chunks = build_model(model, Vocabulary.load(directory / "vocabulary.yaml"), parallel)
    store.load_model(chunks, directory)
    return pipeline_forward([chunk.eval() for chunk in chunks], model.hidden_size)


@torch.no_grad()
def pipeline_forward(chunks: list[Any], hidden_size: int) -> Tensor | None:
    """All stages one after the other, each handing its hidden states on."""
    stage, stages = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_world_size(),
    )
    following, preceding = (
        parallel_state.get_pipeline_model_parallel_next_rank(),
        parallel_state.get_pipeline_model_parallel_prev_rank(),
    )
    output = None
    for index, chunk in enumerate(chunks):
        if not chunk.pre_process:
            hidden = torch.empty(LENGTH, 2, hidden_size, dtype=torch.float64)
            dist.recv(hidden, preceding)
            chunk.set_input_tensor(hidden)
        output = chunk(token_ids())
        if not (stage == stages - 1 and index == len(chunks) - 1):
            dist.send(output.contiguous(), following)
            output = None
    return output


def all_logits(directories: dict[str, Path]) -> dict[tuple[str, str], Tensor | None]:
    return {
        (model, layout): logits_of(directory, parallel)
        for model, directory in directories.items()
        for layout, parallel in LAYOUTS.items()
    }


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each model imported for one layout, written in parts that no rank of another has."""
    folder, found = tmp_path_factory.mktemp("converted"), {}
    for name, config in MODELS.items():
        write_model(folder / "hf" / name, config, num_files=2)
        options = ImportOptions(SAVED_AT[name.split("_")[0]], vocabulary=vocabulary_file(folder))
        run_conversion(plan_import(folder / "hf" / name, folder / name, options))
        found[name] = folder / name
    return found


def vocabulary_file(folder: Path) -> Path:
    Vocabulary(**configuration("step1")["audio_vocabulary"]).save(folder / "ids.yaml")
    return folder / "ids.yaml"


@pytest.fixture(scope="module")
def loaded(converted: dict[str, Path]) -> dict[tuple[str, str], Tensor]:
    ranks = run(all_logits, 4, converted, timeout_s=400)
    return {
        key: next(rank[key] for rank in reversed(ranks) if rank[key] is not None)
        for key in ((model, layout) for model in MODELS for layout in LAYOUTS)
    }


@pytest.fixture(scope="module")
def defined(converted: dict[str, Path]) -> dict[str, Tensor]:
    found = {}
    for name, directory in converted.items():
        files = (directory.parent / "hf" / name).glob("*.safetensors")
        tensors = {key: value for file in files for key, value in load_file(file).items()}
        found[name] = naive_decoder.logits(MODELS[name], tensors, token_ids())
    return found


@pytest.mark.parametrize("model", MODELS)
def test_one_process_computes_what_is_defined(loaded, defined, model):
    tolerance = 1e-10 if model.startswith("step1") else 1e-5  # rotary angles are float32 everywhere
    assert defined[model].std() > 0.3
    torch.testing.assert_close(loaded[model, "tp1"], defined[model], rtol=0, atol=tolerance)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "tp1"])
def test_every_layout_computes_the_same(loaded, model, layout):
    torch.testing.assert_close(loaded[model, layout], loaded[model, "tp1"], rtol=0, atol=1e-11)


def saved_and_exported(folder: Path) -> None:
    """What two ranks save of a model that was loaded; rank 0 exports it, as a user would in a process of its own."""
    for name in ("step1", "qwen2_tied"):
        platform.initialize(LAYOUTS["tp2"])
        model = parse_config(ModelConfig, yaml.safe_load((folder / name / "config.yaml").read_text())["model"])
        chunks = build_model(model, Vocabulary.load(folder / name / "vocabulary.yaml"), LAYOUTS["tp2"])
        store.load_model(chunks, folder / name)
        state = {**store.model_state(chunks), **store.vocabulary_state(chunks)}
        store.save_checkpoint(folder / f"{name}_saved", 7, state, keep=1)
        if dist.get_rank() == 0:
            (folder / f"{name}_saved" / "config.yaml").write_text((folder / name / "config.yaml").read_text())


def test_what_the_trainer_saves_is_exported_byte_by_byte(converted):
    folder = next(iter(converted.values())).parent
    run(saved_and_exported, 2, folder)
    for name in ("step1", "qwen2_tied"):
        resharded = plan_reshard(folder / f"{name}_saved", folder / f"{name}_resharded", ParallelConfig(1, 4))
        run_conversion(resharded)
        for saved in ("saved", "resharded"):
            output = folder / f"{name}_{saved}_hf"
            run_conversion(plan_export(folder / f"{name}_{saved}", output, ExportOptions(like=folder / name)))
            for file in (folder / "hf" / name).iterdir():
                assert (output / file.name).read_bytes() == file.read_bytes(), file.name
