"""Every recipe loads with the record of its tool, fits its layout and batch, and holds the published numbers."""

from __future__ import annotations

import re

import pytest

from megatron_aqaa.config import load_config
from megatron_aqaa.data.prepare import PrepareConfig
from megatron_aqaa.data.prepare_chat import PrepareChatConfig
from megatron_aqaa.model.config import to_transformer_config
from megatron_aqaa.platform.device import has_gpu
from megatron_aqaa.training.dpo.config import DPOTrainConfig
from tests.examples.recipes import (
    FOLDERS,
    ROOT,
    RUNS,
    STAGES,
    VARIANTS,
    data_parallel_sizes,
    differences,
    on_cpu,
    path_of,
    recipe,
)

DATA = {"data": PrepareConfig, "sft_data": PrepareChatConfig, "pairs_data": PrepareChatConfig}
runs = pytest.mark.parametrize(("folder", "name"), RUNS)
folders = pytest.mark.parametrize("folder", FOLDERS)


@folders
def test_a_folder_has_these_recipes_and_no_others(folder: str) -> None:
    wanted = {*STAGES, *VARIANTS[folder], "merge", *(DATA if folder == "aqaa_3b" else ())}
    assert {path.stem for path in (ROOT / "examples" / folder).glob("*.y*ml")} == wanted


@runs
def test_the_model_is_the_published_one_at_a_layout_that_fits(folder: str, name: str) -> None:
    config, parallel = on_cpu(folder, name)
    megatron, model = to_transformer_config(config.model, parallel), config.model
    layers, hidden, ffn, heads, groups, channels = {
        "aqaa_3b": (32, 3072, 8192, 48, 4, 64),
        "aqaa_130b": (88, 12288, 31232, 96, 8, 128),
    }[folder]
    assert (megatron.num_layers, megatron.hidden_size, megatron.ffn_hidden_size) == (layers, hidden, ffn)
    assert (megatron.num_attention_heads, megatron.num_query_groups, megatron.kv_channels) == (heads, groups, channels)
    assert (model.max_sequence_length, model.layernorm_epsilon, model.init_method_std) == (32768, 1e-5, 0.02)
    assert (model.position_embedding, model.params_dtype) == ("sqrt_alibi", "bf16")
    assert model.untie_embeddings_and_output_weights
    assert groups % parallel.tensor_model_parallel_size == 0


@runs
def test_batches_divide_at_every_size_that_the_recipe_is_for(folder: str, name: str) -> None:
    config = recipe(folder, name)
    loop, parallel = config.training, config.parallel
    for size in data_parallel_sizes(folder, name):
        micro_batches, rest = divmod(loop.global_batch_size, loop.micro_batch_size * size)
        assert rest == 0, f"data-parallel size {size}"
        assert micro_batches % parallel.pipeline_model_parallel_size == 0  # the interleaved schedule asks for that
    length = config.data.sequence_length
    assert length % (2 * parallel.context_parallel_size) == 0
    assert length // parallel.context_parallel_size % parallel.tensor_model_parallel_size == 0
    assert length <= config.model.max_sequence_length


@folders
def test_each_run_starts_from_another_of_the_folder(folder: str) -> None:
    starts = {name: recipe(folder, name).training.init_from for name in (*STAGES, *VARIANTS[folder])}
    expected = ["step1", "pretrain_stage1", "pretrain_stage2", "pretrain_stage3", "sft1", "sft1"]
    assert [str(starts[name]) for name in STAGES] == [f"runs/{folder}/{start}" for start in expected]
    for name in (*STAGES, *VARIANTS[folder]):
        assert str(recipe(folder, name).run) == f"runs/{folder}/{name}"
        assert str(recipe(folder, name).vocabulary) == f"runs/{folder}/step1/vocabulary.yaml"


@folders
def test_pretraining_has_the_published_blends_and_rates(folder: str) -> None:
    tasks = ("continuation", "interleaved", "asr", "tts")
    for stage, (parts, audio, text) in enumerate([(1, 2, 1), (2, 2, 1), (4, 4, 3)], start=1):
        config = recipe(folder, f"pretrain_stage{stage}")
        train, optimizer = config.data.train, config.optimizer
        assert set(train) == {*tasks[:parts], "text"}
        assert {train[task] for task in tasks[:parts]} == {audio / parts * train["text"] / text}
        assert optimizer.learning_rate == 2e-5
        assert optimizer.embedding_rate_multiplier == (1.0 if stage == 3 else 5.0)
        assert optimizer.min_learning_rate == (5e-6 if stage == 3 else 0.0)
        assert optimizer.decay_style == ("cosine" if stage == 3 else "constant")


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("pretrain_stage1", 0.9e12), ("pretrain_stage2", 0.6e12), ("pretrain_stage3", 7 * 109e9)],
)
def test_the_large_model_sees_the_published_tokens(name: str, tokens: float) -> None:
    loop, data = recipe("aqaa_130b", name).training, recipe("aqaa_130b", name).data
    assert loop.steps * loop.global_batch_size * data.sequence_length == pytest.approx(tokens, rel=1e-3)


@folders
def test_post_training_has_the_published_settings(folder: str) -> None:
    sft, dpo = recipe(folder, "sft1"), recipe(folder, "dpo")
    assert (sft.optimizer.learning_rate, sft.optimizer.min_learning_rate) == (5.656e-5, 5.656e-6)
    assert sft.training.frozen == ()
    assert isinstance(dpo, DPOTrainConfig)
    assert dpo.dpo.loss_mask == "text"
    assert dpo.reference_checkpoint == sft.run


@pytest.mark.parametrize(
    ("variant", "base", "changed"),
    [
        ("pretrain_stage1_fp8", "pretrain_stage1", {"run", "model.fp8", "parallel.tp_comm_overlap"}),
        (
            "pretrain_stage3_32k",
            "pretrain_stage3",
            {
                "run", "model.recompute", "data.sequence_length", "training.global_batch_size",
                "parallel.context_parallel_size",
            },
        ),
    ],
)  # fmt: skip
def test_a_variant_differs_where_it_says(variant: str, base: str, changed: set[str]) -> None:
    first, second = recipe("aqaa_130b", base), recipe("aqaa_130b", variant)
    assert differences(first, second) == changed
    sizes = [run.training.global_batch_size * run.data.sequence_length for run in (first, second)]
    assert sizes[0] == sizes[1]


@pytest.mark.skipif(has_gpu(), reason="what a machine without a GPU says")
@pytest.mark.parametrize(
    ("name", "setting"), [("pretrain_stage1", "parallel.tp_comm_overlap"), ("pretrain_stage1_fp8", "model.fp8")]
)
def test_without_a_gpu_the_large_recipes_say_what_to_leave_out(name: str, setting: str) -> None:
    config = recipe("aqaa_130b", name)
    with pytest.raises(ValueError, match=f"{setting} needs a GPU"):
        to_transformer_config(config.model, config.parallel)


@pytest.mark.parametrize("recipe_name", DATA)
def test_the_data_recipes_load_and_fit_the_runs(recipe_name: str) -> None:
    config = load_config(DATA[recipe_name], path_of("aqaa_3b", recipe_name))
    assert str(config.output) == "runs/aqaa_3b/data"
    if isinstance(config, PrepareConfig):
        assert set(config.pretraining) == set(recipe("aqaa_3b", "pretrain_stage3").data.train)
    elif config.sft:
        assert set(config.sft) == {name for run in ("sft1", "sft2") for name in recipe("aqaa_3b", run).data.train}
        assert config.max_tokens == recipe("aqaa_3b", "sft1").data.sequence_length + 1
    else:
        assert set(config.preference) == set(recipe("aqaa_3b", "dpo").data.train)
        assert config.max_tokens is not None
        assert 2 * (config.max_tokens - 1) == recipe("aqaa_3b", "dpo").data.sequence_length


@folders
def test_the_readme_names_every_recipe_and_commands_that_exist(folder: str) -> None:
    text = (ROOT / "examples" / folder / "README.md").read_text().replace("\\\n", "")
    for path in (ROOT / "examples" / folder).glob("*.yaml"):
        assert path.stem in text, f"{folder}/README.md does not name {path.name}"
    commands = re.findall(r"^(?:.* )?(tools/\w+\.py) (.*)$", text, re.MULTILINE)
    assert len(commands) > 8
    for tool, rest in commands:
        source = (ROOT / tool).read_text()
        assert all(f'"{option}"' in source for option in re.findall(r"(?<!\S)--[a-z-]+", rest)), (tool, rest)
        assert all((ROOT / path).exists() for path in re.findall(r"examples/[\w/]+\.yaml", rest)), (tool, rest)
