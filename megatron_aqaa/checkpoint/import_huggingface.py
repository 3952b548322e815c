"""Plans an import: a Hugging Face directory becomes a run at step 0 with a `torch_dist` checkpoint for any layout."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_aqaa.checkpoint import safetensors_directory, torch_dist_directory
from megatron_aqaa.checkpoint.added_tokens import grow_tokenizer, grown_vocabulary, known_tokens
from megatron_aqaa.checkpoint.conversion import Conversion, check_output
from megatron_aqaa.checkpoint.families import HuggingFaceModel, read_config, text_vocabulary
from megatron_aqaa.checkpoint.huggingface_source import CONFIG, FILES, aside, finish_aside, keep_source, read_json
from megatron_aqaa.checkpoint.mapping import (
    EMBEDDING,
    HEAD,
    HF_HEAD,
    check_tensors,
    huggingface_shapes,
    links,
    listed,
    megatron_shapes,
)
from megatron_aqaa.checkpoint.pieces import Piece, Pieces, whole_tensors
from megatron_aqaa.checkpoint.rank_boxes import plan_ranks
from megatron_aqaa.checkpoint.stored_tensors import (
    Box,
    MappedFiles,
    OutputFile,
    OutputTensor,
    StoredChunk,
    StoredModel,
    StoredTensor,
)
from megatron_aqaa.model.aqaa_model import VOCABULARY_MULTIPLE
from megatron_aqaa.model.config import DTYPES, ModelConfig, to_transformer_config
from megatron_aqaa.model.vocabulary_growth import draw_rows
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.vocabulary import Vocabulary

SHARD_BYTES = 2 << 30
_LAYERS_WITH_STATE = (
    "self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2",
)  # fmt: skip
VOCABULARY_FILE = "vocabulary.yaml"
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class ImportOptions:
    """How a model is imported.

    Attributes:
        parallel: layout whose shards are written; any other layout can load them too.
        dtype: of the weights, as torch calls it; None keeps each tensor's.
        add_audio_tokens: grow the vocabulary of a text model by both codebooks and the markers.
        audio_base: id of the first code; None for the first behind the text model's rows.
        vocabulary: YAML file with the id layout; None takes what `config.json` says, or the released layout.
        seed: of the new rows.
        keep_extra: keep tensors that the model has no place for aside, instead of refusing them.
        shard_bytes: about the size of a file.
    """

    parallel: ParallelConfig = ParallelConfig()
    dtype: str | None = None
    add_audio_tokens: bool = False
    audio_base: int | None = None
    vocabulary: Path | None = None
    seed: int = 0
    keep_extra: bool = False
    shard_bytes: int = SHARD_BYTES


def plan_import(
    source: Path, output: Path, options: ImportOptions | None = None, *, weights_needed: bool = True
) -> Conversion:
    """Check everything that can be checked before tensors are read.

    Args:
        source: Hugging Face directory.
        output: run that is to be written.
        options: how.
        weights_needed: False plans from `config.json` alone where there are no weights; such a plan cannot run.

    Raises:
        ValueError: tensors are missing, unknown or of another shape; a setting or the layout does not fit the model;
            the output is there; says what was found and what to do.
    """
    options = options or ImportOptions()
    check_output(output)
    config = read_json(source / CONFIG)
    described = read_config(config, str(source / CONFIG))
    stored = _stored(source, described, config, weights_needed)
    extra = _extra(stored, described, options.keep_extra)
    vocabulary = _vocabulary(source, config, described, options)
    dtypes = _dtypes(stored, described, options.dtype)
    model = dataclasses.replace(described.model, params_dtype=_params_dtype(source, set(dtypes.values())))
    to_transformer_config(model, options.parallel)  # refuses layouts that the model does not divide over
    padded = vocabulary.padded_size(VOCABULARY_MULTIPLE)
    shapes = megatron_shapes(model, padded)
    beside = torch_dist_directory.Beside(
        common={"vocabulary": dataclasses.asdict(vocabulary)},
        objects=_extra_states(model.num_layers),
        configuration=_configuration(model, options.parallel),
    )
    tensors, files = plan_ranks(shapes, dtypes, options.parallel, options.shard_bytes, beside)
    pieces = _pieces(stored, model, described.vocabulary_rows, vocabulary, padded, options.seed)
    extra_tensors, extra_files = aside(extra, options.shard_bytes)
    return Conversion(
        settings={"verb": "import", "source": str(source), "options": _plain(options)},
        source=source,
        source_files=(*stored.files, source / CONFIG),
        output=output,
        files=[*files, *extra_files],
        tensors=tensors | extra_tensors,
        pieces=pieces | whole_tensors(extra),
        finish=functools.partial(
            _finish, source, output, vocabulary, options, (files, tensors, beside), (extra_files, extra_tensors)
        ),
        notes=_notes(stored, vocabulary, options),
    )


def _stored(source: Path, described: HuggingFaceModel, config: dict[str, Any], weights_needed: bool) -> StoredModel:
    if safetensors_directory.is_safetensors_directory(source):
        return safetensors_directory.scan(source)
    if weights_needed:
        raise ValueError(f"{source}: has neither {safetensors_directory.INDEX} nor {safetensors_directory.WEIGHTS}; "
                         "copy the whole model, its index included")  # fmt: skip
    name = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    dtype = getattr(torch, name)
    shapes = huggingface_shapes(described.model, described.vocabulary_rows)
    tensors = {
        key: StoredTensor(dtype, shape, (StoredChunk(source / "absent", 0, Box.whole(shape)),))
        for key, shape in shapes.items()
    }
    return StoredModel(str(source), source, tensors, {}, {}, (), source)


def _extra(stored: StoredModel, described: HuggingFaceModel, keep: bool) -> dict[str, StoredTensor]:
    wanted = huggingface_shapes(described.model, described.vocabulary_rows)
    found = {name: tensor.shape for name, tensor in stored.tensors.items()}
    unknown = check_tensors(stored.path, found, wanted)
    if HF_HEAD in unknown and not described.model.untie_embeddings_and_output_weights:
        unknown.remove(HF_HEAD)
        _check_tied(stored)
    if unknown and not keep:
        raise ValueError(f"{stored.path}: {len(unknown)} tensor(s) have no place in the model: {listed(unknown)}; "
                         "--keep-extra keeps them aside, and export writes them back")  # fmt: skip
    return {name: stored.tensors[name] for name in unknown}


def _check_tied(stored: StoredModel) -> None:
    """A head stored beside the embedding that it is tied to must be that embedding."""
    embedding, head = stored.tensors["model.embed_tokens.weight"], stored.tensors[HF_HEAD]
    files = MappedFiles()
    same = embedding.shape == head.shape and embedding.dtype == head.dtype
    for box in Box.whole(embedding.shape).blocks(1 << 20) if same else ():
        same = same and torch.equal(
            files.read(embedding, box).view(torch.uint8), files.read(head, box).view(torch.uint8)
        )
    if not same:
        raise ValueError(f"{stored.path}: tie_word_embeddings is set, but {HF_HEAD} is not the embedding; set it to "
                         "false in config.json to keep both")  # fmt: skip


def _vocabulary(
    source: Path, config: dict[str, Any], described: HuggingFaceModel, options: ImportOptions
) -> Vocabulary:
    if options.vocabulary is not None:
        found = Vocabulary.load(options.vocabulary)
    elif described.vocabulary is not None:
        found = described.vocabulary
    elif described.family == "step1" and described.vocabulary_rows == Vocabulary.size:
        found = Vocabulary()
    elif described.family == "step1" and not options.add_audio_tokens:
        raise ValueError(f"{source}: vocab_size = {described.vocabulary_rows} is not the released layout; say with "
                         "--vocabulary FILE.yaml what the ids mean")  # fmt: skip
    else:
        found = text_vocabulary(config)
    if found.size != described.vocabulary_rows:
        raise ValueError(f"{source}: has {described.vocabulary_rows} ids, the vocabulary {found.size}; give the "
                         "vocabulary file of this model")  # fmt: skip
    if not options.add_audio_tokens:
        return found
    if found.linguistic_size or found.semantic_size:
        raise ValueError(f"{source}: has audio tokens already; leave out --add-audio-tokens")
    return grown_vocabulary(found, known_tokens(source), options.audio_base)


def _dtypes(stored: StoredModel, described: HuggingFaceModel, chosen: str | None) -> dict[str, torch.dtype]:
    """Of every Megatron tensor: that of its parts."""
    found: dict[str, torch.dtype] = {}
    for link in links(described.model, described.vocabulary_rows):
        if link.name not in stored.tensors:
            continue
        dtype = getattr(torch, chosen) if chosen else stored.tensors[link.name].dtype
        if found.setdefault(link.megatron, dtype) != dtype:
            raise ValueError(f"{stored.path}: {link.name} is {dtype}, other parts of {link.megatron} are "
                             f"{found[link.megatron]}; choose one with --dtype")  # fmt: skip
    return found


def _params_dtype(source: Path, dtypes: set[torch.dtype]) -> Any:
    known = dtypes & _DTYPE_NAMES.keys()
    if known != dtypes:
        other = ", ".join(sorted(str(dtype) for dtype in dtypes - known))
        raise ValueError(f"{source}: holds {other} weights; models are trained in bfloat16 or float32: choose one with "
                         "--dtype")  # fmt: skip
    narrowest = min(dtypes, key=lambda dtype: dtype.itemsize)  # norms may be wider than the matrices
    return _DTYPE_NAMES[narrowest]


def _extra_states(num_layers: int) -> dict[MetadataIndex, bytes]:
    """What Megatron's layers ask for beside their weights: nothing, but it must be there, or no model loads strictly.

    The last is Transformer Engine's norm; models without it do not ask.
    """
    buffer = io.BytesIO()
    torch.save([None], buffer)
    keys = [f"decoder.layers.{name}._extra_state/shard_{layer}_{num_layers}" for layer in range(num_layers)
            for name in _LAYERS_WITH_STATE]  # fmt: skip
    return {MetadataIndex(key): buffer.getvalue() for key in (*keys, "decoder.final_layernorm._extra_state/shard_0_1")}


def _configuration(model: ModelConfig, parallel: ParallelConfig) -> dict[str, Any]:
    """What `tools/train.py` would find beside a checkpoint, as far as it is known; `model` is to be copied."""
    return {"model": dataclasses.asdict(model), "parallel": dataclasses.asdict(parallel)}


def _pieces(
    stored: StoredModel, model: ModelConfig, rows: int, vocabulary: Vocabulary, padded: int, seed: int
) -> dict[str, Pieces]:
    kept = rows if vocabulary.size == rows else vocabulary.text_size  # of a grown vocabulary
    found: dict[str, list[Piece]] = {}
    for link in links(model, rows):
        if link.name == HF_HEAD and not model.untie_embeddings_and_output_weights:
            continue
        pieces, source = found.setdefault(link.megatron, []), stored.tensors[link.name]
        if link.megatron in (EMBEDDING, HEAD):
            pieces += _table_pieces(source, kept, vocabulary.size, padded, seed)
        else:
            pieces.append(Piece(link.megatron_box, source, link.box))
    return {name: Pieces(pieces) for name, pieces in found.items()}


def _table_pieces(table: StoredTensor, kept: int, size: int, padded: int, seed: int) -> Iterator[Piece]:
    """Rows of a vocabulary table: those of the source, drawn ones up to `size`, then padding."""
    columns = table.shape[1]
    same = Box((0, 0), (kept, columns))
    yield Piece(same, table, same)
    if size > kept:
        drawn = Box((kept, 0), (size - kept, columns))
        yield Piece(drawn, _drawn(table, kept, size - kept, seed), Box.whole(drawn.sizes))
    if padded > size:
        padding = Box((size, 0), (padded - size, columns))
        yield Piece(padding, None, padding)


def _drawn(table: StoredTensor, kept: int, count: int, seed: int) -> Callable[[], Tensor]:
    """Rows as a run with `training.grow_vocabulary` would start with, made when they are first asked for."""

    @functools.cache
    def make() -> Tensor:
        rows = MappedFiles().read(table, Box.whole((kept, table.shape[1])))
        return draw_rows(rows, count, seed).to(table.dtype)

    return make


def _finish(
    source: Path,
    output: Path,
    vocabulary: Vocabulary,
    options: ImportOptions,
    checkpoint: tuple[list[OutputFile], dict[str, OutputTensor], torch_dist_directory.Beside],
    extra: tuple[list[OutputFile], dict[str, OutputTensor]],
    work: Path,
) -> None:
    files, tensors, beside = checkpoint
    keep_source(source, work)
    finish_aside(work, *extra)
    if options.add_audio_tokens:
        grow_tokenizer(work / FILES, vocabulary)
    vocabulary.save(work / VOCABULARY_FILE)
    values = {"run": str(output), "vocabulary": str(output / VOCABULARY_FILE), **(beside.configuration or {})}
    (work / torch_dist_directory.CONFIGURATION).write_text(yaml.safe_dump(values, sort_keys=False))
    torch_dist_directory.finish(work, files, tensors, beside)


def _plain(options: ImportOptions) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(options).items()}


def _notes(stored: StoredModel, vocabulary: Vocabulary, options: ImportOptions) -> tuple[str, ...]:
    notes = [f"left out: {', '.join(stored.left_out)}"] if stored.left_out else []
    if options.add_audio_tokens:
        notes.append(f"<audio_0> is id {vocabulary.linguistic_start}, {vocabulary.size} ids in all")
    return tuple(notes)
