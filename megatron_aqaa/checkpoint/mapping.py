"""Names of a decoder's tensors in Hugging Face and in Megatron: a two-way table of a few kinds of rows.

Every row says which Hugging Face tensors, one under the other, are one Megatron tensor. So both directions are the same
list of `Link`s: equal elements, in row-major order, in a part of one tensor here and of one tensor there. Megatron-Core
0.16.1 stacks the layers: `decoder.layers.mlp.linear_fc2.weight` is [layers, H, F].

- A plain row: one tensor is the other.
- Gate and up: `linear_fc1` is all of gate, then all of up; a tensor-parallel rank holds a part of both.
- Grouped queries: `linear_qkv` is, group by group, the group's query heads, its key head, its value head.
- Vocabulary rows: Megatron's table has padding behind the last id.
- A tied head: Hugging Face may store the embedding a second time, as `lm_head.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.model.config import ModelConfig

Shape = tuple[int, ...]
EMBEDDING, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
CODEBOOK_TYPE, GROUP_POSITION = "embedding.codebook_type", "embedding.group_position"  # Hugging Face has no such tables
HF_HEAD = "lm_head.weight"
_LAYERS, _HF_LAYERS = "decoder.layers.", "model.layers.{}."
_NUM_NAMED = 8


@dataclass(frozen=True)
class Row:
    """One Megatron tensor and its parts.

    Attributes:
        megatron: name.
        parts: Hugging Face names, `{}` for the layer, each with its shape in words (`_dimensions`).
        split: axis, without that of the layers, which tensor-parallel ranks share; None: each has all.
        kind: how the parts lie in the Megatron tensor.
        stage: of the pipeline that holds it.
    """

    megatron: str
    parts: Mapping[str, tuple[str, ...]]
    split: int | None = None
    kind: Literal["plain", "gated", "grouped", "vocabulary", "tied"] = "plain"
    stage: Literal["layers", "first", "last"] = "layers"


@dataclass(frozen=True)
class Link:
    """Equal elements, row-major: `box` of a Hugging Face tensor and `megatron_box` of a Megatron tensor."""

    name: str
    box: Box
    megatron: str
    megatron_box: Box


def _layer(megatron: str, *parts: str, shape: tuple[str, ...] | tuple[tuple[str, ...], ...], **kinds: object) -> Row:
    shapes = shape if isinstance(shape[0], tuple) else (shape,) * len(parts)
    named = {_HF_LAYERS + part: words for part, words in zip(parts, shapes, strict=True)}
    return Row(_LAYERS + megatron, named, **kinds)  # type: ignore[arg-type]


def _queries_keys_values(what: str, *columns: str) -> Row:
    names = [f"self_attn.{letter}_proj.{what}" for letter in "qkv"]
    shape = tuple((rows, *columns) for rows in ("queries", "keys", "keys"))
    return _layer(f"self_attention.linear_qkv.{what}", *names, shape=shape, split=0, kind="grouped")


_BODY = (
    Row(EMBEDDING, {"model.embed_tokens.weight": ("vocabulary", "hidden")}, 0, "vocabulary", "first"),
    _queries_keys_values("weight", "hidden"),
    _layer("self_attention.linear_proj.weight", "self_attn.o_proj.weight", shape=("hidden", "queries"), split=1),
    _layer(
        "mlp.linear_fc1.weight",
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
        shape=("ffn", "hidden"),
        split=0,
        kind="gated",
    ),
    _layer("mlp.linear_fc2.weight", "mlp.down_proj.weight", shape=("hidden", "ffn"), split=1),
    _layer("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight", shape=("hidden",)),
    _layer("mlp.linear_fc1.layer_norm_weight", "post_attention_layernorm.weight", shape=("hidden",)),
    Row("decoder.final_layernorm.weight", {"model.norm.weight": ("hidden",)}, stage="last"),
)
_QKV_BIAS = _queries_keys_values("bias")
_OWN_HEAD = Row(HEAD, {HF_HEAD: ("vocabulary", "hidden")}, 0, "vocabulary", "last")
_TIED_HEAD = Row(EMBEDDING, {HF_HEAD: ("vocabulary", "hidden")}, 0, "tied", "first")
_ALL_ROWS = {row.megatron: row for row in (*_BODY, _QKV_BIAS, _OWN_HEAD)}


def rows(model: ModelConfig) -> tuple[Row, ...]:
    """The table of a model: Step-1 and Llama have the same, Qwen2 has biases on query, key and value."""
    biases = (_QKV_BIAS,) if model.add_qkv_bias else ()
    return (*_BODY, *biases, _OWN_HEAD if model.untie_embeddings_and_output_weights else _TIED_HEAD)


def row_of(megatron: str) -> Row | None:
    """The row of a Megatron tensor, None for one that is in no table."""
    return _ALL_ROWS.get(megatron)


def head_dim(model: ModelConfig) -> int:
    """Width of one head."""
    return model.kv_channels or model.hidden_size // model.num_attention_heads


def _dimensions(model: ModelConfig, vocabulary_rows: int) -> dict[str, int]:
    return {
        "hidden": model.hidden_size,
        "ffn": model.ffn_hidden_size,
        "queries": model.num_attention_heads * head_dim(model),
        "keys": model.num_query_groups * head_dim(model),
        "vocabulary": vocabulary_rows,
    }


def huggingface_shapes(model: ModelConfig, vocabulary_rows: int) -> dict[str, Shape]:
    """Every tensor of a Hugging Face model, in the order in which transformers stores them.

    A tied head is not among them: it may be there or not.
    """
    sizes = _dimensions(model, vocabulary_rows)
    table = [row for row in rows(model) if row.kind != "tied"]
    found: dict[str, Shape] = {}
    for layered in (False, True):
        for layer in range(model.num_layers if layered else 1):
            for row in (row for row in table if (row.stage == "layers") == layered):
                for name, words in row.parts.items():
                    found[name.format(layer)] = tuple(sizes[word] for word in words)
    first = next(iter(found))
    tail = [name for name in ("model.norm.weight", HF_HEAD) if name in found]
    return {name: found[name] for name in (first, *(n for n in found if n != first and n not in tail), *tail)}


def megatron_shapes(model: ModelConfig, padded_rows: int) -> dict[str, Shape]:
    """Every tensor of a Megatron model without the small tables; vocabulary tables have `padded_rows`."""
    sizes = _dimensions(model, padded_rows)
    found: dict[str, Shape] = {}
    for row in rows(model):
        shapes = [tuple(sizes[word] for word in words) for words in row.parts.values()]
        stacked = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        found[row.megatron] = (model.num_layers, *stacked) if row.stage == "layers" else stacked
    return found


def links(model: ModelConfig, vocabulary_rows: int) -> Iterator[Link]:
    """All pairs of equal parts; a tied head is a second name for rows of the embedding."""
    sizes = _dimensions(model, vocabulary_rows)
    for row in rows(model):
        groups = model.num_query_groups if row.kind == "grouped" else 1
        shapes = {name: tuple(sizes[word] for word in words) for name, words in row.parts.items()}
        for layer in range(model.num_layers) if row.stage == "layers" else (None,):
            yield from _links(row.megatron, shapes, layer, groups)


def _links(megatron: str, shapes: Mapping[str, Shape], layer: int | None, groups: int) -> Iterator[Link]:
    position = 0
    for group in range(groups):
        for name, (all_rows, *columns) in shapes.items():
            count = all_rows // groups
            box = Box((group * count, *(0 for _ in columns)), (count, *columns))
            place = Box((position, *(0 for _ in columns)), box.sizes)
            position += count
            if layer is not None:
                place = Box((layer, *place.offsets), (1, *place.sizes))
            yield Link(name if layer is None else name.format(layer), box, megatron, place)


def check_tensors(source: str, found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> list[str]:
    """Names in `found` that no row knows.

    Args:
        source: what holds the tensors, for messages.
        found: name → shape there.
        wanted: name → shape of a model of this configuration.

    Raises:
        ValueError: tensors are missing or have another shape; lists them.
    """
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{source}: {len(missing)} tensor(s) are missing that its configuration asks for: "
                         f"{listed(missing)}; copy the model again, or correct its configuration")  # fmt: skip
    wrong = [name for name, shape in wanted.items() if tuple(found[name]) != shape]
    if wrong:
        shown = [f"{name} is {list(found[name])}, {list(wanted[name])} by the configuration" for name in wrong]
        raise ValueError(f"{source}: {len(wrong)} tensor(s) of another shape: {listed(shown, '; ')}")
    return [name for name in found if name not in wanted]


def listed(names: list[str], separator: str = ", ") -> str:
    """The first few."""
    return separator.join(names[:_NUM_NAMED]) + (f"{separator}…" if len(names) > _NUM_NAMED else "")
