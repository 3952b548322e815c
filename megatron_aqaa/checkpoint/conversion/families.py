"""`config.json` of Step-1, Llama and Qwen2 models and `ModelConfig`, translated both ways.

A setting that this project's model cannot have is an error, never dropped: a model converted without it would run, and
say something else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_aqaa.checkpoint.mapping import head_dim
from megatron_aqaa.model.config import ModelConfig
from megatron_aqaa.vocabulary import Vocabulary

FamilyName = Literal["step1", "llama", "qwen2"]
ARCHITECTURES: dict[FamilyName, str] = {
    "step1": "Step1ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
VOCABULARY_KEY = "audio_vocabulary"
"""Key of `config.json` under which an exported model says what its ids mean; others ignore it."""
_SIZES = {
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "rms_norm_eps": "layernorm_epsilon",
    "initializer_range": "init_method_std",
}
_LENGTH = {"step1": "max_seq_len", "llama": "max_position_embeddings", "qwen2": "max_position_embeddings"}
_GROUPS = {"step1": "num_attention_groups", "llama": "num_key_value_heads", "qwen2": "num_key_value_heads"}
_REFUSED = {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "hidden_act": "silu"}
_OPTIONAL = ("rms_norm_eps", "initializer_range")
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class HuggingFaceModel:
    """What `config.json` says.

    Attributes:
        family: by `model_type`.
        model: size and kind.
        vocabulary_rows: of embedding and head.
        vocabulary: the id layout, where the file tells it.
    """

    family: FamilyName
    model: ModelConfig
    vocabulary_rows: int
    vocabulary: Vocabulary | None


def read_config(config: Mapping[str, Any], source: str) -> HuggingFaceModel:
    """Translate `config.json`.

    Args:
        config: its values.
        source: its path, for messages.

    Raises:
        ValueError: another family, a key is missing, or a setting that the model here cannot have.
    """
    family = _family(config, source)
    for key, only in _REFUSED.items():
        if config.get(key, only) != only:
            raise ValueError(f"{source}: {key} = {config[key]!r}; only {only!r} can be converted")
    wanted = [key for key in (*_SIZES, "vocab_size") if key not in _OPTIONAL and key not in config]
    if wanted:
        raise ValueError(f"{source}: has no {', '.join(wanted)}; copy the model's own config.json")
    values = {ours: config[key] for key, ours in _SIZES.items() if key in config}
    heads = config["num_attention_heads"]
    values["num_query_groups"] = config.get(_GROUPS[family]) or (1 if family == "step1" else heads)
    if _LENGTH[family] in config:
        values["max_sequence_length"] = config[_LENGTH[family]]
    # transformers and vLLM take Step-1 for tied where the key is absent only by accident: its checkpoints have a head.
    values["untie_embeddings_and_output_weights"] = not config.get("tie_word_embeddings", False)
    if family != "step1":
        values |= _rotary(config, source) | {"position_embedding": "rope", "add_qkv_bias": family == "qwen2"}
    width = config.get("head_dim") or config["hidden_size"] // heads
    if width * heads != config["hidden_size"]:
        _require_own_width(family, width, source)
        values["kv_channels"] = width
    known = config.get(VOCABULARY_KEY)
    vocabulary = Vocabulary(**known) if known else None
    return HuggingFaceModel(family, ModelConfig(**values), config["vocab_size"], vocabulary)


def _family(config: Mapping[str, Any], source: str) -> FamilyName:
    said = config.get("model_type"), *(config.get("architectures") or ())
    for family, architecture in ARCHITECTURES.items():
        if family == said[0] or architecture in said:
            return family
    raise ValueError(f"{source}: model_type = {said[0]!r}, architectures = {list(said[1:])}; known are "
                     f"{', '.join(ARCHITECTURES)}")  # fmt: skip


def _require_own_width(family: FamilyName, width: int, source: str) -> None:
    if family == "step1":
        raise ValueError(f"{source}: heads of width {width} are not hidden_size / num_attention_heads, which is what "
                         "Step1ForCausalLM has everywhere; set model.kv_channels accordingly")  # fmt: skip


def _rotary(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Both spellings: `rope_theta` with `rope_scaling`, and `rope_parameters` of transformers 5."""
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = scaling.pop("rope_theta", None) or config.get("rope_theta", 10000)
    if base != int(base):
        raise ValueError(f"{source}: rope_theta = {base}; only whole numbers can be converted")
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    if kind == "default":
        return {"rotary_base": int(base)}
    factor = scaling.pop("factor", None)
    if kind != "llama3" or factor is None or any(scaling.get(key) != value for key, value in _LLAMA3.items()):
        raise ValueError(f"{source}: rope_scaling of kind {kind} with {scaling}; only llama3 with {_LLAMA3} can be "
                         "converted")  # fmt: skip
    return {"rotary_base": int(base), "rotary_scaling_factor": float(factor)}


def family_of(model: ModelConfig) -> FamilyName:
    """The family that can express `model`."""
    if model.position_embedding == "sqrt_alibi":
        return "step1"
    return "qwen2" if model.add_qkv_bias else "llama"


def write_config(family: FamilyName, model: ModelConfig, vocabulary: Vocabulary, dtype: str) -> dict[str, Any]:
    """`config.json` of a model.

    Args:
        family: to write it for.
        model: size and kind.
        vocabulary: id layout; its `size` rows are what the other side sees.
        dtype: of the weights, as torch calls it.

    Raises:
        ValueError: the family has no place for a setting of the model.
    """
    _check_expressible(family, model)
    config: dict[str, Any] = {"architectures": [ARCHITECTURES[family]], "model_type": family}
    config |= {key: getattr(model, ours) for key, ours in _SIZES.items()}
    config |= {
        _GROUPS[family]: model.num_query_groups,
        _LENGTH[family]: model.max_sequence_length,
        "vocab_size": vocabulary.size,
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eot,
        "pad_token_id": vocabulary.pad,
        "torch_dtype": dtype,
        "hidden_act": "silu",
        "use_cache": True,
        VOCABULARY_KEY: dataclasses.asdict(vocabulary),
    }
    if family != "step1":
        config |= {"head_dim": head_dim(model), "rope_theta": float(model.rotary_base)}
        if model.rotary_scaling_factor != 1.0:
            config["rope_scaling"] = {"rope_type": "llama3", "factor": model.rotary_scaling_factor, **_LLAMA3}
    return config


def _check_expressible(family: FamilyName, model: ModelConfig) -> None:
    fits = family_of(model)
    if fits != family:
        raise ValueError(f"the model is of kind {fits} (position_embedding = {model.position_embedding}, add_qkv_bias ="
                         f" {model.add_qkv_bias}) and cannot be written as {family}")  # fmt: skip
    if model.alibi_slope_scale != 1.0:
        raise ValueError(f"model.alibi_slope_scale = {model.alibi_slope_scale}: Step1ForCausalLM has the published "
                         "slopes only; train with 1.0 for a model that is to be served elsewhere")  # fmt: skip
    if head_dim(model) * model.num_attention_heads != model.hidden_size:
        _require_own_width(family, head_dim(model), "the model")


def changed_config(
    recorded: Mapping[str, Any], written: Mapping[str, Any], before: Mapping[str, Any]
) -> dict[str, Any]:
    """`recorded` with what differs between `before` (what it would be written as) and `written`."""
    changes = {key: value for key, value in written.items() if before.get(key) != value}
    if "dtype" in recorded and "torch_dtype" in changes:  # transformers from 4.56 on
        changes["dtype"] = changes.pop("torch_dtype")
    return {**recorded, **changes}
