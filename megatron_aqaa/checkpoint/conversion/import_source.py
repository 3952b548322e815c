"""What an imported Hugging Face directory holds, held against its `config.json`: tensors, extra ones, dtypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_aqaa.checkpoint import safetensors_directory
from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.conversion.families import HuggingFaceModel
from megatron_aqaa.checkpoint.mapping import HF_HEAD, check_tensors, huggingface_shapes, links, listed
from megatron_aqaa.checkpoint.stored_tensors import MappedFiles, StoredChunk, StoredModel, StoredTensor
from megatron_aqaa.model.config import DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def source_weights(
    source: Path, described: HuggingFaceModel, config: dict[str, Any], weights_needed: bool = True
) -> StoredModel:
    """All tensors of a directory; without weights, where none are needed, those that its configuration asks for.

    Raises:
        ValueError: there are no weights, or they are damaged; names the file.
    """
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


def unplaced_tensors(stored: StoredModel, described: HuggingFaceModel, keep: bool) -> dict[str, StoredTensor]:
    """Tensors that the model has no place for.

    Raises:
        ValueError: there are some and they are not to be kept, or tensors are missing or of another shape; lists them.
    """
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


def megatron_dtypes(stored: StoredModel, described: HuggingFaceModel, chosen: str | None) -> dict[str, torch.dtype]:
    """Of every Megatron tensor that of its parts, or the chosen one.

    Raises:
        ValueError: parts of one tensor have different ones, and none was chosen; names the part.
    """
    found: dict[str, torch.dtype] = {}
    for link in links(described.model, described.vocabulary_rows):
        if link.name not in stored.tensors:
            continue
        dtype = getattr(torch, chosen) if chosen else stored.tensors[link.name].dtype
        if found.setdefault(link.megatron, dtype) != dtype:
            raise ValueError(f"{stored.path}: {link.name} is {dtype}, other parts of {link.megatron} are "
                             f"{found[link.megatron]}; choose one with --dtype")  # fmt: skip
    return found


def params_dtype(source: Path, dtypes: set[torch.dtype]) -> Any:
    """`model.params_dtype` of weights in `dtypes`; raises ValueError for those that nothing is trained in."""
    known = dtypes & _DTYPE_NAMES.keys()
    if known != dtypes:
        other = ", ".join(sorted(str(dtype) for dtype in dtypes - known))
        raise ValueError(f"{source}: holds {other} weights; models are trained in bfloat16 or float32: choose one with "
                         "--dtype")  # fmt: skip
    narrowest = min(dtypes, key=lambda dtype: dtype.itemsize)  # norms may be wider than the matrices
    return _DTYPE_NAMES[narrowest]
