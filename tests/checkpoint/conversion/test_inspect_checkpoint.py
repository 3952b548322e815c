"""What `inspect` prints: sizes, layout, ids, and what does not fit the configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from megatron_aqaa.checkpoint.conversion.import_huggingface import ImportOptions, plan_import
from megatron_aqaa.checkpoint.conversion.inspect_checkpoint import describe_checkpoint
from megatron_aqaa.checkpoint.conversion.run import run_conversion
from megatron_aqaa.platform import ParallelConfig
from tests.checkpoint.conversion.tiny_huggingface import configuration, random_tensors, write_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_model(tmp_path / "hf", configuration("step1"), num_files=2)
    return tmp_path / "hf"


def test_a_hugging_face_directory(source):
    lines = describe_checkpoint(source)
    assert lines[0] == f"{source}: Hugging Face safetensors"
    assert "tensors: 39 with 69,360 elements, 277,440 bytes" in lines
    assert "dtypes: float32 69,360" in lines
    assert "layout: 2 file(s), whole tensors" in lines
    assert "family: step1" in lines
    assert "  num_query_groups: 2" in lines
    assert any(line.startswith("vocabulary: 110 rows, text_size 60, linguistic_size 16") for line in lines)
    assert not [line for line in lines if line.startswith("misfit") or "params_dtype" in line]


def test_a_run(source, tmp_path):
    run_conversion(plan_import(source, tmp_path / "run", ImportOptions(ParallelConfig(2, 2))))
    lines = describe_checkpoint(tmp_path / "run")
    assert "layout: 4 file(s) of 4 rank(s), decoder.layers.mlp.linear_fc1.weight in 16 parts" in lines
    assert "  params_dtype: fp32" in lines
    assert lines[-1].startswith(f"converted: import from {source}")
    values = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    values["model"]["ffn_hidden_size"] = 65
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(values))
    assert any(
        "misfit" in line and "tensor(s) of another shape" in line for line in describe_checkpoint(tmp_path / "run")
    )
    (tmp_path / "run" / "config.yaml").unlink()
    assert any(
        "misfit" in line and "config.yaml: no such file" in line for line in describe_checkpoint(tmp_path / "run")
    )


def test_misfits_are_told(source, tmp_path):
    config = configuration("step1")
    write_model(tmp_path / "more", config, {**random_tensors(config), "audio.weight": torch.zeros(5, 7)})
    (misfit,) = (line for line in describe_checkpoint(tmp_path / "more") if line.startswith("misfit"))
    assert misfit == "misfit: 1 tensor(s) with 35 elements have no place in the model: audio.weight"
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    assert any(line.startswith("misfit") and "9 tensor(s) are missing" in line for line in describe_checkpoint(source))
    (source / "config.json").unlink()
    assert "misfit: no config.json" in describe_checkpoint(source)


def test_a_directory_of_something_else(tmp_path):
    with pytest.raises(ValueError, match="holds neither safetensors weights nor a torch_dist checkpoint"):
        describe_checkpoint(tmp_path)
