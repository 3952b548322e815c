"""Plans an export: a `torch_dist` checkpoint becomes a Hugging Face directory of sharded safetensors."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_aqaa.checkpoint import safetensors_directory
from megatron_aqaa.checkpoint.added_tokens import SENTENCEPIECE, grow_tokenizer
from megatron_aqaa.checkpoint.conversion import Conversion, check_output
from megatron_aqaa.checkpoint.families import (
    FamilyName,
    changed_config,
    family_of,
    model_code,
    read_config,
    write_config,
)
from megatron_aqaa.checkpoint.huggingface_source import (
    CONFIG,
    FOLDER,
    extra_tensors,
    files_folder,
    recorded_files,
    recorded_names,
)
from megatron_aqaa.checkpoint.import_huggingface import SHARD_BYTES
from megatron_aqaa.checkpoint.mapping import (
    CODEBOOK_TYPE,
    EMBEDDING,
    GROUP_POSITION,
    HF_HEAD,
    Shape,
    huggingface_shapes,
    links,
)
from megatron_aqaa.checkpoint.model_directory import MegatronModel, read_model
from megatron_aqaa.checkpoint.pieces import Piece, Pieces, whole_tensors
from megatron_aqaa.checkpoint.stored_tensors import Box, MappedFiles, OutputFile, OutputTensor, StoredTensor
from megatron_aqaa.model.config import ModelConfig
from megatron_aqaa.vocabulary import Vocabulary

GENERATION = "generation_config.json"


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        like: imported run or Hugging Face directory that configuration, tokenizer and file layout are taken from; None
            for what the run itself kept when it was imported.
        dtype: of the weights, as torch calls it; None keeps each tensor's.
        own_model_code: put this project's transformers model of Step-1 beside the weights, also where `like` has none
            or another.
        shard_bytes: about the size of a file, where `like` does not give the layout.
    """

    like: Path | None = None
    dtype: str | None = None
    own_model_code: bool = False
    shard_bytes: int = SHARD_BYTES


def plan_export(source: Path, output: Path, options: ExportOptions | None = None) -> Conversion:
    """Check everything that can be checked before tensors are read.

    Args:
        source: run or checkpoint.
        output: Hugging Face directory that is to be written.
        options: how.

    Raises:
        ValueError: the checkpoint is not complete, or holds what Hugging Face has no place for; the output is there;
            says what was found and what to do.
    """
    options = options or ExportOptions()
    check_output(output)
    found = read_model(source)
    like = options.like or (found.run if (found.run / FOLDER).is_dir() else None)
    model = exported_model(found)
    exported = exported_pieces(found, with_tied_head=_stores_tied_head(like, model))
    dtypes = {n: getattr(torch, options.dtype) if options.dtype else _dtype(p) for n, (_, p) in exported.items()}
    tensors = {name: OutputTensor(dtypes[name], shape, (Box.whole(shape),)) for name, (shape, _) in exported.items()}
    extra = extra_tensors(like) if like is not None else {}
    tensors |= {name: OutputTensor(it.dtype, it.shape, (Box.whole(it.shape),)) for name, it in extra.items()}
    recorded = recorded_files(like, tensors) if like is not None else None
    files = recorded or safetensors_directory.plan(tensors, options.shard_bytes)
    config = _config(found, model, like, _common_dtype(dtypes))
    return Conversion(
        settings={"verb": "export", "source": str(source), "options": _plain(options)},
        source=found.run,
        source_files=(*found.stored.files, *sorted({c.path for it in extra.values() for c in it.chunks})),
        output=output,
        files=files,
        tensors=tensors,
        pieces={name: pieces for name, (_, pieces) in exported.items()} | whole_tensors(extra),
        finish=functools.partial(
            _finish, found, like, config, recorded is not None, options.own_model_code, (files, tensors)
        ),
        notes=_notes(like, recorded, found),
    )


def exported_model(found: MegatronModel) -> ModelConfig:
    """With codebook vectors folded into the embedding, a tied head becomes one of its own: they are for input only."""
    if GROUP_POSITION in found.small_tables:
        raise ValueError(
            "model.group_position_embedding cannot be exported: it adds a vector by the place of a token, while an "
            "exported row belongs to the token alone. Train with model.group_position_embedding: false for a model "
            "that is to be served elsewhere"
        )
    folded = CODEBOOK_TYPE in found.small_tables
    untied = found.model.untie_embeddings_and_output_weights or folded
    return dataclasses.replace(found.model, untie_embeddings_and_output_weights=untied, codebook_type_embedding=False)


def _stores_tied_head(like: Path | None, model: ModelConfig) -> bool:
    """Some models store a tied head a second time; they get it back."""
    if like is None or model.untie_embeddings_and_output_weights:
        return False
    return HF_HEAD in recorded_names(like)


def exported_pieces(found: MegatronModel, with_tied_head: bool = False) -> dict[str, tuple[Shape, Pieces]]:
    """Hugging Face tensor → its shape, and what it is made of.

    Args:
        found: the checkpoint.
        with_tied_head: also the embedding a second time, as head.
    """
    model = exported_model(found)
    shapes, pieces = huggingface_shapes(model, found.vocabulary.size), _pieces(found, model)
    if with_tied_head:
        shapes[HF_HEAD] = (found.vocabulary.size, model.hidden_size)
    return {name: (shape, pieces[name]) for name, shape in shapes.items()}


def _pieces(found: MegatronModel, model: ModelConfig) -> dict[str, Pieces]:
    tensors, pieces = found.stored.tensors, dict[str, list[Piece]]()
    for link in links(model, found.vocabulary.size):
        tied = link.name == HF_HEAD and not found.model.untie_embeddings_and_output_weights
        source = tensors[EMBEDDING if tied else link.megatron]
        pieces.setdefault(link.name, []).append(Piece(link.box, source, link.megatron_box))
    if CODEBOOK_TYPE in found.small_tables:
        pieces["model.embed_tokens.weight"] = _folded(found)
    return {name: Pieces(parts) for name, parts in pieces.items()}


def _folded(found: MegatronModel) -> list[Piece]:
    """Embedding with the vector of each row's codebook added, rounded once (`model.embedding.fold_codebook_type`)."""
    v, table, vectors = found.vocabulary, found.stored.tensors[EMBEDDING], found.small_tables[CODEBOOK_TYPE]
    text, linguistic, semantic = MappedFiles().read(vectors, Box.whole(vectors.shape)).clone()
    ranges = (
        (0, v.linguistic_start, text),
        (v.linguistic_start, v.semantic_start, linguistic),
        (v.semantic_start, v.audio_stop, semantic),
        (v.audio_stop, v.size, text),
    )
    boxes = [(Box((start, 0), (stop - start, table.shape[1])), added) for start, stop, added in ranges if stop > start]
    return [Piece(box, table, box, added) for box, added in boxes]


def _dtype(pieces: Pieces) -> torch.dtype:
    source = next(iter(pieces.items)).source
    assert isinstance(source, StoredTensor)
    return source.dtype


def _common_dtype(dtypes: dict[str, torch.dtype]) -> str:
    """The narrowest: norms may be wider than the matrices."""
    return str(min(dtypes.values(), key=lambda dtype: dtype.itemsize)).removeprefix("torch.")


def _config(found: MegatronModel, model: ModelConfig, like: Path | None, dtype: str) -> dict[str, Any] | None:
    """`config.json`, None where that of `like` says the same and is copied byte by byte."""
    if like is None:
        return write_config(family_of(model), model, found.vocabulary, dtype)
    path = files_folder(like) / CONFIG
    recorded = safetensors_directory.read_json(path)
    described = read_config(recorded, str(path))
    same_ids = described.vocabulary_rows == found.vocabulary.size
    ids = described.vocabulary or (found.vocabulary if same_ids else _of_size(described.vocabulary_rows))
    said = recorded.get("dtype") or recorded.get("torch_dtype") or dtype
    before = write_config(described.family, described.model, ids, said)
    changed = changed_config(recorded, write_config(described.family, model, found.vocabulary, dtype), before)
    return None if changed == recorded else changed


def _of_size(rows: int) -> Vocabulary:
    return Vocabulary(text_size=rows, linguistic_size=0, semantic_size=0, size=rows, bos=0, eot=0, bot=0, audio_start=0,
                      audio_end=0)  # fmt: skip


def _finish(
    found: MegatronModel,
    like: Path | None,
    config: dict[str, Any] | None,
    same_files: bool,
    own_model_code: bool,
    weights: tuple[list[OutputFile], dict[str, OutputTensor]],
    work: Path,
) -> None:
    """Configuration last: without it nothing loads the directory."""
    files, tensors = weights
    folder = None if like is None else files_folder(like)
    if same_files and folder is not None and (folder / safetensors_directory.INDEX).exists():
        shutil.copyfile(folder / safetensors_directory.INDEX, work / safetensors_directory.INDEX)
    else:
        safetensors_directory.finish(work, files, tensors)
    for file in safetensors_directory.files_beside(folder) if folder is not None else ():
        if file.name != CONFIG:
            shutil.copyfile(file, work / file.name)
    if like is None:
        _write_generation_config(work, found.vocabulary)
        _write_tokenizer(work, found)
    if config is None and own_model_code and folder is not None:
        config = safetensors_directory.read_json(folder / CONFIG)
    if config is None and folder is not None:
        shutil.copyfile(folder / CONFIG, work / CONFIG)
        return
    assert config is not None
    if family_name(config) == "step1" and (own_model_code or like is None):
        config = config | {"auto_map": model_code(work)}
    (work / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def family_name(config: dict[str, Any]) -> FamilyName:
    """Of a configuration."""
    return read_config(config, CONFIG).family


def _write_generation_config(work: Path, vocabulary: Vocabulary) -> None:
    values = {"bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.eot, "pad_token_id": vocabulary.pad}
    (work / GENERATION).write_text(json.dumps(values, indent=2) + "\n")


def _write_tokenizer(work: Path, found: MegatronModel) -> None:
    """The text model that lies beside the run's vocabulary file, with the audio tokens as pieces."""
    named = (found.stored.beside.configuration or {}).get("vocabulary")
    text = Path(named).with_name("text.model") if named else None
    if text is not None and text.exists():
        shutil.copyfile(text, work / SENTENCEPIECE)
        grow_tokenizer(work, found.vocabulary)


def _plain(options: ExportOptions) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(options).items()}


def _notes(like: Path | None, recorded: list[OutputFile] | None, found: MegatronModel) -> tuple[str, ...]:
    notes = []
    if like is None:
        notes.append("configuration written anew: the run was not imported, and there is no --like")
    elif recorded is None:
        notes.append(f"files are laid out anew: {like} has other tensors, shapes or dtypes")
    if CODEBOOK_TYPE in found.small_tables:
        notes.append("codebook vectors are folded into the embedding")
    return tuple(notes)
