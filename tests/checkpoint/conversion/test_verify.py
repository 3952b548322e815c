"""Two checkpoints tensor by tensor: the worst difference and its place, whatever their kind, layout and dtypes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_aqaa.checkpoint.conversion import verify
from megatron_aqaa.checkpoint.conversion.import_huggingface import ImportOptions, plan_import
from megatron_aqaa.checkpoint.conversion.reshard import plan_reshard
from megatron_aqaa.checkpoint.conversion.run import run_conversion
from megatron_aqaa.checkpoint.conversion.verify import Comparison, check_recorded, compare
from megatron_aqaa.platform import ParallelConfig
from tests.checkpoint.conversion.tiny_huggingface import configuration, random_tensors, write_model

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
CONFIG = configuration("step1")
DOWN, NORM = "model.layers.1.mlp.down_proj.weight", "model.norm.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_model(tmp_path / "hf", CONFIG, num_files=3)
    return tmp_path / "hf"


def other(tmp_path: Path, tensors: dict[str, Tensor], name: str = "other") -> Path:
    write_model(tmp_path / name, CONFIG, tensors)
    return tmp_path / name


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Path:
    run_conversion(plan_import(source, tmp_path / "run", ImportOptions(ParallelConfig(2, 2))))
    return tmp_path / "run"


def test_the_worst_difference_of_any_kind_and_block(source, run, tmp_path, monkeypatch):
    tensors = random_tensors(CONFIG)
    tensors[DOWN][3, 9] += 0.5
    tensors[DOWN][40, 1] -= 0.125
    tensors[NORM][7] += 0.25
    changed = other(tmp_path, tensors)
    for block_bytes in (16 << 20, 640):
        monkeypatch.setattr(verify, "_BLOCK_BYTES", block_bytes)
        for path in (source, run):
            for found in (compare(path, changed), compare(changed, path)):
                assert (found.num_tensors, found.num_different, found.worst) == (39, 2, DOWN)
                assert found.worst_index == (3, 9) and found.largest == pytest.approx(0.5, abs=1e-6)
    assert str(found) == f"2 of 39 tensors differ, most {DOWN}[3, 9]: by 0.5"


def test_equal_to_the_bit_at_any_layout(source, run, tmp_path):
    run_conversion(plan_reshard(run, tmp_path / "run4", ParallelConfig(4)))
    for first, second in ((source, run), (run, tmp_path / "run4"), (tmp_path / "run4", source)):
        found = compare(first, second)
        assert (found.num_different, found.worst, found.largest, found.worst_index) == (0, None, 0.0, ())
    assert str(found) == "39 tensors, equal bit by bit"
    assert compare(run, tmp_path / "run4").num_tensors == 9  # by Megatron's names, the padding included


def test_other_dtypes_differ_by_what_the_rounding_took(source, tmp_path):
    tensors = random_tensors(CONFIG)
    narrow = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    found = compare(source, other(tmp_path, narrow))
    errors = {name: (tensor.double() - narrow[name].double()).abs() for name, tensor in tensors.items()}
    worst = max(errors, key=lambda name: float(errors[name].max()))
    assert (found.num_different, found.worst, found.largest) == (39, worst, float(errors[worst].max()))
    assert float(errors[worst][found.worst_index]) == found.largest


def test_equal_values_in_another_dtype_are_not_equal_bits(source, tmp_path):
    wide = random_tensors(CONFIG)
    wide[NORM] = torch.ones(48)
    narrow = wide | {NORM: torch.ones(48).bfloat16()}
    found = compare(other(tmp_path, wide, "wide"), other(tmp_path, narrow, "narrow"))
    assert found == Comparison(39, 1, NORM, 0.0, (0,))


def test_zeros_of_unlike_sign_differ_by_nothing(source, tmp_path):
    tensors = random_tensors(CONFIG)
    tensors[NORM][5] = 0.0
    negative = tensors | {NORM: tensors[NORM].clone()}
    negative[NORM][5] = -0.0
    found = compare(other(tmp_path, tensors, "positive"), other(tmp_path, negative, "negative"))
    assert (found.num_different, found.worst, found.largest) == (1, NORM, 0.0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_on_one_side_is_infinitely_far(source, tmp_path, value):
    tensors = random_tensors(CONFIG)
    tensors[DOWN][0, 0] += 100
    tensors[NORM][2] = value
    changed = other(tmp_path, tensors)
    for found in (compare(source, changed), compare(changed, source)):
        assert (found.worst, found.worst_index, found.largest) == (NORM, (2,), float("inf"))
    assert compare(changed, other(tmp_path, tensors, "same")).worst is None


def test_tensors_that_only_one_has_are_named(source, run, tmp_path):
    less = random_tensors(CONFIG)
    del less[NORM], less[DOWN]
    path = other(tmp_path, less, "less")
    for first, second in ((source, path), (path, source), (run, path)):
        holder = run if run in (first, second) else source
        with pytest.raises(ValueError, match=rf"2 tensor\(s\) only in {holder}: {DOWN}, {NORM}"):
            compare(first, second)


def test_shapes_that_differ_are_named(source, tmp_path):
    tensors = random_tensors(CONFIG)
    tensors[NORM] = torch.zeros(47)
    with pytest.raises(ValueError, match=rf"1 tensor\(s\) of unlike shape: {NORM} is \[48\], \[47\]"):
        compare(source, other(tmp_path, tensors))


def test_a_tied_head_may_be_stored_twice(tmp_path):
    config = configuration("qwen2", tie_word_embeddings=True)
    tensors = write_model(tmp_path / "once", config)
    write_model(tmp_path / "twice", config, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    assert compare(tmp_path / "once", tmp_path / "twice").worst is None
    assert compare(tmp_path / "twice", tmp_path / "once").worst is None


def test_checksums(source, run, tmp_path):
    record_bytes = sum(file.stat().st_size for file in run.rglob("*.distcp"))
    assert check_recorded(run) == record_bytes
    with pytest.raises(ValueError, match="has no conversion_record.json; .* Give a second checkpoint to compare with"):
        check_recorded(source)
