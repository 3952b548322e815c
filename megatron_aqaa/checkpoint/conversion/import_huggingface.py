"""Plans an import: a Hugging Face directory becomes a run at step 0 with a `torch_dist` checkpoint for any layout."""

from __future__ import annotations

import dataclasses
import functools
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_aqaa.checkpoint import torch_dist_directory
from megatron_aqaa.checkpoint.conversion.added_tokens import grow_tokenizer
from megatron_aqaa.checkpoint.conversion.families import read_config
from megatron_aqaa.checkpoint.conversion.huggingface_source import (
    CONFIG,
    FILES,
    aside,
    finish_aside,
    keep_source,
    read_json,
)
from megatron_aqaa.checkpoint.conversion.import_pieces import imported_pieces
from megatron_aqaa.checkpoint.conversion.import_source import (
    megatron_dtypes,
    params_dtype,
    source_weights,
    unplaced_tensors,
)
from megatron_aqaa.checkpoint.conversion.model_directory import write_description
from megatron_aqaa.checkpoint.conversion.pieces import whole_tensors
from megatron_aqaa.checkpoint.conversion.plan import SHARD_BYTES, Conversion, Weights, check_output, plain_values
from megatron_aqaa.checkpoint.conversion.rank_boxes import plan_ranks
from megatron_aqaa.checkpoint.conversion.vocabularies import imported_vocabulary
from megatron_aqaa.checkpoint.mapping import megatron_shapes
from megatron_aqaa.checkpoint.stored_tensors import StoredModel
from megatron_aqaa.model.aqaa_model import VOCABULARY_MULTIPLE
from megatron_aqaa.model.config import to_transformer_config
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.vocabulary import Vocabulary

_LAYERS_WITH_STATE = (
    "self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2",
)  # fmt: skip


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
    stored = source_weights(source, described, config, weights_needed)
    extra = unplaced_tensors(stored, described, options.keep_extra)
    vocabulary = imported_vocabulary(
        source, config, described, options.vocabulary, options.add_audio_tokens, options.audio_base
    )
    dtypes = megatron_dtypes(stored, described, options.dtype)
    model = dataclasses.replace(described.model, params_dtype=params_dtype(source, set(dtypes.values())))
    to_transformer_config(model, options.parallel)  # refuses layouts that the model does not divide over
    padded = vocabulary.padded_size(VOCABULARY_MULTIPLE)
    shapes = megatron_shapes(model, padded)
    beside = torch_dist_directory.Beside(
        common={"vocabulary": dataclasses.asdict(vocabulary)},
        objects=_layer_states(model.num_layers),
        configuration={"model": dataclasses.asdict(model), "parallel": dataclasses.asdict(options.parallel)},
    )
    tensors, files = plan_ranks(shapes, dtypes, options.parallel, options.shard_bytes, beside)
    pieces = imported_pieces(stored, model, described.vocabulary_rows, vocabulary, padded, options.seed)
    aside_tensors, aside_files = aside(extra, options.shard_bytes)
    return Conversion(
        settings={"verb": "import", "source": str(source), "options": plain_values(options)},
        source=source,
        source_files=(*stored.files, source / CONFIG),
        output=output,
        files=[*files, *aside_files],
        tensors=tensors | aside_tensors,
        pieces=pieces | whole_tensors(extra),
        finish=functools.partial(
            _finish, source, output, vocabulary, options, beside, (files, tensors), (aside_files, aside_tensors)
        ),
        notes=_notes(stored, vocabulary, options),
    )


def _layer_states(num_layers: int) -> dict[MetadataIndex, bytes]:
    """What Megatron's layers ask for beside their weights: nothing, but it must be there, or no model loads strictly.

    The last is Transformer Engine's norm; models without it do not ask.
    """
    buffer = io.BytesIO()
    torch.save([None], buffer)
    keys = [f"decoder.layers.{name}._extra_state/shard_{layer}_{num_layers}" for layer in range(num_layers)
            for name in _LAYERS_WITH_STATE]  # fmt: skip
    return {MetadataIndex(key): buffer.getvalue() for key in (*keys, "decoder.final_layernorm._extra_state/shard_0_1")}


def _finish(
    source: Path,
    output: Path,
    vocabulary: Vocabulary,
    options: ImportOptions,
    beside: torch_dist_directory.Beside,
    checkpoint: Weights,
    extra: Weights,
    work: Path,
) -> None:
    keep_source(source, work)
    finish_aside(work, *extra)
    if options.add_audio_tokens:
        grow_tokenizer(work / FILES, vocabulary)
    write_description(work, output, vocabulary, beside.configuration or {})
    torch_dist_directory.finish(work, *checkpoint, beside)


def _notes(stored: StoredModel, vocabulary: Vocabulary, options: ImportOptions) -> tuple[str, ...]:
    notes = [f"left out: {', '.join(stored.left_out)}"] if stored.left_out else []
    if options.add_audio_tokens:
        notes.append(f"<audio_0> is id {vocabulary.linguistic_start}, {vocabulary.size} ids in all")
    return tuple(notes)
