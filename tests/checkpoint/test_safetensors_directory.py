"""Safetensors files against the package that defines them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.elements import tensor_bytes, write_fully
from megatron_aqaa.checkpoint.output_files import OutputFile, OutputTensor
from megatron_aqaa.checkpoint.safetensors_directory import INDEX, WEIGHTS, finish, plan, prepare, scan
from megatron_aqaa.checkpoint.stored_tensors import MappedFiles

TENSORS = {
    "bytes": torch.arange(7, dtype=torch.uint8),
    "half": torch.randn(3, 5).half(),
    "bf": torch.randn(5, 3).bfloat16(),
    "single": torch.randn(2, 3, 4),
    "double": torch.randn(3).double(),
    "flag": torch.tensor([True, False, True]),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 4),
}


OUTPUT = {
    name: OutputTensor(tensor.dtype, tuple(tensor.shape), (Box.whole(tuple(tensor.shape)),))
    for name, tensor in TENSORS.items()
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / WEIGHTS, metadata={"format": "pt"})
    return tmp_path


def test_reads_what_the_package_wrote(directory):
    model = scan(directory)
    files = MappedFiles()
    assert model.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(files.read(model.tensors[name], Box.whole(tuple(tensor.shape))), tensor), name


def write(output: Path, files: list[OutputFile], tensors: dict[str, Tensor]) -> None:
    for file in files:
        with (output / file.name).open("wb") as stream:
            stream.truncate(file.size)
            for offset, data in file.literals:
                write_fully(stream.fileno(), data, offset)
            for region in file.regions:
                write_fully(stream.fileno(), tensor_bytes(tensors[region.tensor]), region.start)


@pytest.mark.parametrize("shard_bytes", [1, 40, 1 << 20])
def test_the_package_reads_what_is_written(directory, tmp_path, shard_bytes):
    output = tmp_path / "output"
    output.mkdir()
    files = plan(OUTPUT, shard_bytes)
    write(output, files, TENSORS)
    finish(output, files, OUTPUT)
    found = {name: tensor for file in files for name, tensor in load_file(output / file.name).items()}
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(output / files[0].name, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert scan(output).tensors.keys() == TENSORS.keys()
    if len(files) == 1:
        assert files[0].name == WEIGHTS and not (output / INDEX).exists()
    else:
        index = json.loads((output / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
        assert index["weight_map"] == {region.tensor: file.name for file in files for region in file.regions}


def test_every_tensor_is_aligned():
    for file in plan(OUTPUT, 1 << 20):
        assert all(region.start % TENSORS[region.tensor].itemsize == 0 for region in file.regions)


def test_what_stands_beside_the_weights_is_copied_and_says_the_new_dtype(directory, tmp_path):
    (directory / "config.json").write_text('{"torch_dtype": "float32", "vocab_size": 3}')
    for name in ("tokenizer.json", "modeling_x.py", "optimizer.pt", "model-00001-of-00009.safetensors"):
        (directory / name).write_text("{}")
    model = scan(directory)
    output = tmp_path / "output"
    output.mkdir()
    assert model.left_out == ("model-00001-of-00009.safetensors", "optimizer.pt")
    narrow = OutputTensor(torch.bfloat16, (2, 3, 4), (Box.whole((2, 3, 4)),))
    prepare(output, {"single": narrow, "count": OUTPUT["count"]}, model.beside)
    assert sorted(os.listdir(output)) == ["config.json", "modeling_x.py", "tokenizer.json"]
    assert json.loads((output / "config.json").read_text()) == {"torch_dtype": "bfloat16", "vocab_size": 3}


def test_a_file_that_the_index_names_is_missing(directory):
    index = {"weight_map": dict.fromkeys(TENSORS, WEIGHTS) | {"single": "other.safetensors"}}
    (directory / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="other.safetensors: named by model.safetensors.index.json, but not there"):
        scan(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": WEIGHTS}, r"1 tensor\(s\) are not where it says, such as more: in None, named for model.safetensors"),
        ({"single": None}, "such as single: in model.safetensors, named for None"),
    ],
)
def test_an_index_that_does_not_fit_its_files(directory, change, message):
    index = dict.fromkeys(TENSORS, WEIGHTS) | change
    (directory / INDEX).write_text(json.dumps({"weight_map": {k: v for k, v in index.items() if v}}))
    with pytest.raises(ValueError, match=message):
        scan(directory)


def test_two_models_in_one_directory(directory):
    save_file({"single": TENSORS["single"]}, directory / "other.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": {"single": "other.safetensors"}}))
    with pytest.raises(ValueError, match="two models; remove one"):
        scan(directory)


def test_a_configuration_without_a_dtype_gets_one(directory, tmp_path):
    (directory / "config.json").write_text("{}")
    output = tmp_path / "output"
    output.mkdir()
    prepare(output, {"single": OUTPUT["single"]}, directory)
    assert json.loads((output / "config.json").read_text()) == {"torch_dtype": "float32"}


def test_a_tensor_in_two_files(directory):
    save_file({"single": TENSORS["single"]}, directory / "other.safetensors")
    index = {"weight_map": dict.fromkeys(TENSORS, WEIGHTS) | {"single": "other.safetensors"}}
    (directory / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="tensor single is also in model.safetensors"):
        scan(directory)
