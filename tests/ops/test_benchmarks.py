"""What the operators' benchmarks count and compare."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_aqaa import platform
from megatron_aqaa.data.indexed import DocumentWriter
from megatron_aqaa.vocabulary import Vocabulary

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """The module of a benchmark, by its name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def megatron():
    platform.initialize(platform.ParallelConfig())
    yield
    platform.shutdown()


def test_embedding_counts_each_row_once_and_only_its_own(load):
    embedding = load("embedding")
    last = embedding.Slice(8).start
    token_ids = torch.tensor([[0, 0, last, last + 1], [5, last, last, 5]])
    whole, eighth = embedding.Slice(1), embedding.Slice(8)
    assert embedding.forward_bytes(token_ids, 10, whole) == 2 * 10 * (4 + 8)
    assert embedding.forward_bytes(token_ids, 10, eighth, small_rows=8) == 2 * 10 * (2 + 8 + 8)
    assert embedding.backward_bytes(token_ids, 10, whole) == 10 * (2 * 8 + 8 * 4)
    assert embedding.backward_bytes(token_ids, 10, eighth) == 10 * (2 * 4 + 8 * 2)


def test_code_pairs_count_each_row_once_and_no_absent_one(load):
    code_pair = load("code_pair")
    codes = torch.tensor([[[3, 7], [-1, 7], [3, 8]]])
    rows, frames = 3, 3
    forward, both = code_pair.Case(1, frames, 10, torch.bfloat16, main_grad=True).bytes(codes)
    assert forward == 2 * 10 * (rows + frames)
    assert both == forward + 10 * (2 * frames + 8 * rows)
    forward, both = code_pair.Case(1, frames, 10, torch.float32, main_grad=False).bytes(codes)
    assert both == forward + 10 * (4 * frames + 4 * (1024 + 4096))


def test_the_forms_of_code_pairs_agree(load):
    code_pair = load("code_pair")
    case = code_pair.Case(2, 7, 16, torch.float32, main_grad=False)
    assert (case.codes()[:, 2::3, 0] == -1).all() and (case.codes()[..., 1] >= 0).all()
    forms = code_pair.forms(case, backward=False)
    assert torch.equal(forms["ours"](), forms["eager"]())


def test_the_copy_moves_what_it_is_told(load):
    copied = load("side_by_side").copy_of(1000)()
    assert copied.nbytes == 500 and (copied == 1).all()


def test_codes_of_a_run_take_the_released_ids(load, tmp_path):
    token_mix, vocabulary = load("token_mix"), Vocabulary.for_text(160)
    (tmp_path / "tokenizer").mkdir()
    vocabulary.save(tmp_path / "tokenizer" / "vocabulary.yaml")
    start = vocabulary.linguistic_start
    with DocumentWriter(tmp_path / "tokens" / "audio", vocabulary) as writer:
        writer.add([vocabulary.pad])  # a recording that could not be tokenized
        writer.add(np.array([0, 1, 1024, 1025, 5119] * 2) + start)
        writer.add(np.array([2, 3, 1026, 1027, 1028]) + start)
    ids = token_mix.mixed_ids(1, 25, tmp_path)[0]
    audio = ids[Vocabulary().is_audio(ids)] - Vocabulary().linguistic_start
    assert sorted(audio.tolist()) == sorted([0, 1, 1024, 1025, 5119] * 2 + [2, 3, 1026, 1027, 1028])
    with pytest.raises(ValueError, match="15 audio tokens, 30 are needed"):
        token_mix.mixed_ids(1, 50, tmp_path)


def test_the_forms_of_attention_agree(load, megatron):
    attention = load("attention")
    shape = attention.Shape(20, 2, 4, 2, 16, torch.float32, 7)
    backends = attention.cpu_forms(shape)
    *tensors, _ = shape.tensors()
    out = {name: backends[name](*tensors, shape.document_ids(), 0.25) for name in backends if name != "torch.compile"}
    for name in ("SDPA, dense bias", "eager"):
        torch.testing.assert_close(out[name], out["explicit"])
    ids = shape.document_ids()
    same = (ids[:, :, None] == ids[:, None, :]).tril()
    without = attention.eager(torch.zeros(()).where(same, -torch.inf)[:, None])
    torch.testing.assert_close(out["Megatron, without bias"], without(*tensors, None, 0.25))


def test_the_slice_of_log_probabilities_is_an_eighth(load):
    logps = load("logps")
    assert logps.SLICE.size == logps.SLICE.padded_size(128) == logps.RELEASED.size // 8


def test_parts_measured_on_a_gpu_stand_in_one_file(load, tmp_path):
    ops = load("ops")
    for part, date in (("embedding", "1"), ("logps", "2"), ("embedding", "3")):
        (tmp_path / f"{part}_cuda.json").write_text(json.dumps({"gpu": "NVIDIA H200", "date": date}))
        assert ops.move_into_one(part, tmp_path) == tmp_path / "h200_ops.json"
    assert [path.name for path in tmp_path.iterdir()] == ["h200_ops.json"]
    records = json.loads((tmp_path / "h200_ops.json").read_text())
    assert {part: record["date"] for part, record in records.items()} == {"embedding": "3", "logps": "2"}


def test_a_record_names_its_versions(load, tmp_path):
    load("side_by_side").save("some", tmp_path / "some.json", [{"case": "one"}], repeats=20)
    record = json.loads((tmp_path / "some.json").read_text())
    assert record["torch"] == torch.__version__ and record["megatron_core"] and record["repeats"] == 20
    assert ("gpu" in record) == torch.cuda.is_available()
