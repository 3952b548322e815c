"""Models that transformers wrote, in Megatron, and models that we wrote, in transformers: the same logits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_aqaa import platform
from megatron_aqaa.checkpoint import store
from megatron_aqaa.checkpoint.conversion.export_huggingface import ExportOptions, plan_export
from megatron_aqaa.checkpoint.conversion.import_huggingface import ImportOptions, plan_import
from megatron_aqaa.checkpoint.conversion.model_directory import read_model
from megatron_aqaa.checkpoint.conversion.run import run_conversion
from megatron_aqaa.model import build_model
from megatron_aqaa.platform import ParallelConfig
from tests.checkpoint.conversion.tiny_huggingface import configuration, write_model

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[hf]'")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SIZES: dict[str, Any] = {
    "vocab_size": 110,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
MODELS = {
    "llama": ("Llama", SIZES),
    "llama_wide_heads_tied": ("Llama", {**SIZES, "head_dim": 10, "tie_word_embeddings": True}),
    "llama3": ("Llama", {**SIZES, "rope_parameters": LLAMA3}),
    "llama_mha": ("Llama", {**SIZES, "num_key_value_heads": 12}),
    "qwen2": ("Qwen2", SIZES),
    "qwen2_tied": ("Qwen2", {**SIZES, "tie_word_embeddings": True}),
}


@pytest.fixture(autouse=True)
def _one_process() -> Iterator[None]:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    platform.initialize(ParallelConfig(), seed=0)
    yield
    platform.shutdown()


def token_ids() -> Tensor:
    return torch.randint(0, 110, (2, 20), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def megatron_logits(run: Path) -> Tensor:
    found = read_model(run)
    chunks = build_model(found.model, found.vocabulary)
    store.load_model(chunks, run)
    return chunks[0].eval()(token_ids())


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_saved(tmp_path, name):
    kind, values = MODELS[name]
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**values)).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "hf")
    with torch.no_grad():
        wanted = model(token_ids()).logits
    run_conversion(plan_import(tmp_path / "hf", tmp_path / "run", ImportOptions(ParallelConfig(2, 2))))
    torch.testing.assert_close(megatron_logits(tmp_path / "run"), wanted, rtol=0, atol=5e-5)
    run_conversion(plan_export(tmp_path / "run", tmp_path / "out"))
    for file in (tmp_path / "hf").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("family", ["step1", "llama", "qwen2"])
def test_what_we_exported(tmp_path, family):
    write_model(tmp_path / "hf", configuration(family), num_files=2)
    run_conversion(plan_import(tmp_path / "hf", tmp_path / "run"))
    options = ExportOptions(own_model_code=True, shard_bytes=100_000)
    run_conversion(plan_export(tmp_path / "run", tmp_path / "out", options))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        found = model(token_ids()).logits
    torch.testing.assert_close(found, megatron_logits(tmp_path / "run"), rtol=0, atol=5e-5)
    answer = model.generate(token_ids()[:1, :5], max_new_tokens=4, do_sample=False)
    assert answer.shape == (1, 9) or int(answer[0, -1]) == 3
    if family == "step1":
        assert "auto_map" in json.loads((tmp_path / "out" / "config.json").read_text())
