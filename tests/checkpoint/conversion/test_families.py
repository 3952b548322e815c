"""`config.json` and `ModelConfig`, both ways."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_aqaa.checkpoint.conversion.families import changed_config, family_of, read_config, write_config
from megatron_aqaa.model.config import ModelConfig
from megatron_aqaa.vocabulary import Vocabulary
from tests.checkpoint.conversion.tiny_huggingface import CONFIGS, VOCABULARY, configuration

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_the_released_step1_configuration():
    released = {
        "architectures": ["Step1ForCausalLM"],
        "model_type": "step1",
        "hidden_size": 12288,
        "intermediate_size": 31232,
        "num_attention_heads": 96,
        "num_attention_groups": 8,
        "num_hidden_layers": 88,
        "max_seq_len": 32768,
        "vocab_size": 74752,
        "rms_norm_eps": 1e-5,
    }
    found = read_config(released, "config.json")
    assert found.family == "step1" and found.vocabulary_rows == 74752
    assert found.model == ModelConfig(
        num_layers=88, hidden_size=12288, ffn_hidden_size=31232, num_attention_heads=96, num_query_groups=8
    )
    assert released.items() <= write_config("step1", found.model, Vocabulary(), "bfloat16").items()


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_written_reads_back(family, tied):
    model = read_config(configuration(family, tie_word_embeddings=tied), "here").model
    assert family_of(model) == family
    written = write_config(family, model, VOCABULARY, "float32")
    assert written["tie_word_embeddings"] is tied  # without the key, vLLM takes Step-1 for tied
    found = read_config(written, "there")
    assert found.model == model and found.vocabulary == VOCABULARY and found.family == family


def test_rotary_settings():
    assert read_config(configuration("qwen2"), "here").model.rotary_base == 1_000_000
    five = {**configuration("llama"), "rope_parameters": {"rope_theta": 500000.0, **LLAMA3}}
    model = read_config(five, "here").model
    assert (model.rotary_base, model.rotary_scaling_factor) == (500_000, 8.0)
    four = {**configuration("llama"), "rope_theta": 500000.0, "rope_scaling": LLAMA3}
    assert read_config(four, "here").model == model
    assert read_config(write_config("llama", model, VOCABULARY, "float32"), "there").model == model


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", {"attention_bias": True}, "attention_bias = True; only False can be converted"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'; only 'silu'"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling of kind yarn"),
        ("llama", {"rope_scaling": {**LLAMA3, "low_freq_factor": 2.0}}, "only llama3 with"),
        ("llama", {"rope_theta": 10000.5}, "rope_theta = 10000.5; only whole numbers"),
        ("llama", {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "known are step1, llama, qwen2"),
        ("step1", {"head_dim": 8}, "heads of width 8 are not hidden_size / num_attention_heads"),
        ("step1", {"num_attention_groups": 5}, "must be a multiple of num_query_groups = 5"),
    ],
)
def test_what_cannot_be_converted_is_refused(family, change, message):
    with pytest.raises(ValueError, match=message):
        read_config(configuration(family, **change), "config.json")


def test_a_missing_key_is_named():
    config = configuration("llama")
    del config["intermediate_size"], config["vocab_size"]
    with pytest.raises(ValueError, match="config.json: has no intermediate_size, vocab_size"):
        read_config(config, "config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alibi_slope_scale": 2.0}, "alibi_slope_scale = 2.0"),
        ({"kv_channels": 10}, "heads of width 10"),
        ({"position_embedding": "rope"}, "the model is of kind llama"),
    ],
)
def test_what_the_family_cannot_express_is_refused(change, message):
    model = dataclasses.replace(read_config(configuration("step1"), "here").model, **change)
    with pytest.raises(ValueError, match=message):
        write_config("step1", model, VOCABULARY, "float32")


def test_only_what_changed_is_changed():
    recorded = {"dtype": "bfloat16", "vocab_size": 5, "comment": "mine", "rope_theta": 1e4}
    before = {"torch_dtype": "bfloat16", "vocab_size": 5, "head_dim": 4}
    assert changed_config(recorded, before, before) == recorded
    assert changed_config(recorded, {**before, "torch_dtype": "float32", "vocab_size": 9}, before) == {
        **recorded,
        "dtype": "float32",
        "vocab_size": 9,
    }
