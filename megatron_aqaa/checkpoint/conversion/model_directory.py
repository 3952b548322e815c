"""A `torch_dist` checkpoint of this project as a model: its tensors, its configuration, its id layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_aqaa.checkpoint import torch_dist_directory
from megatron_aqaa.checkpoint.mapping import CODEBOOK_TYPE, GROUP_POSITION, check_tensors, megatron_shapes
from megatron_aqaa.checkpoint.stored_tensors import StoredModel, StoredTensor
from megatron_aqaa.config import parse_config
from megatron_aqaa.model.config import ModelConfig
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY_FILE = "vocabulary.yaml"


@dataclass(frozen=True)
class MegatronModel:
    """A checkpoint with everything that is needed to name its tensors.

    Attributes:
        run: directory of the run, where `config.yaml` lies.
        stored: tensors and files.
        model: size and kind.
        vocabulary: id layout.
    """

    run: Path
    stored: StoredModel
    model: ModelConfig
    vocabulary: Vocabulary

    @property
    def small_tables(self) -> dict[str, StoredTensor]:
        """Tables that only this project's model has."""
        return {
            name: self.stored.tensors[name] for name in (CODEBOOK_TYPE, GROUP_POSITION) if name in self.stored.tensors
        }


def read_model(path: Path) -> MegatronModel:
    """A checkpoint, or the newest one of the run `path`.

    Raises:
        ValueError: no complete checkpoint, no `config.yaml` beside it, no vocabulary in it, or tensors that do not fit
            these; says which.
    """
    stored = torch_dist_directory.scan(path)
    run = stored.directory.parent.parent
    configuration = run / torch_dist_directory.CONFIGURATION
    if not (stored.beside.configuration or {}).get("model"):
        raise ValueError(f"{configuration}: no such file, or no `model` in it; tools/train.py writes it beside the "
                         "checkpoints: copy it there")  # fmt: skip
    model = parse_config(ModelConfig, stored.beside.configuration["model"], str(configuration))
    if "vocabulary" not in stored.beside.common:
        raise ValueError(f"{stored.directory}: does not say what its ids mean; save it again with tools/train.py")
    found = MegatronModel(run, stored, model, Vocabulary(**stored.beside.common["vocabulary"]))
    misfits = unknown_tensors(found)
    if misfits:
        raise ValueError(f"{stored.directory}: has tensors that no model of its config.yaml has: {', '.join(misfits)}")
    return found


def unknown_tensors(found: MegatronModel) -> list[str]:
    """Tensors that the configuration does not ask for.

    Raises:
        ValueError: tensors are missing or of another shape; lists them.
    """
    tensors = {name: tensor.shape for name, tensor in found.stored.tensors.items() if name not in found.small_tables}
    rows = tensors.get("embedding.word_embeddings.weight", (0,))[0]
    return check_tensors(str(found.stored.directory), tensors, megatron_shapes(found.model, rows))


def write_description(folder: Path, run: Path, vocabulary: Vocabulary, configuration: Mapping[str, Any]) -> None:
    """Write what `tools/train.py` would find beside a checkpoint, as far as it is known; `model` is to be copied.

    Args:
        folder: that is written to.
        run: directory that it will be.
        vocabulary: id layout.
        configuration: of the run.
    """
    vocabulary.save(folder / VOCABULARY_FILE)
    values = {**configuration, "run": str(run), "vocabulary": str(run / VOCABULARY_FILE)}
    (folder / torch_dist_directory.CONFIGURATION).write_text(yaml.safe_dump(values, sort_keys=False))
