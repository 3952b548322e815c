"""What stands beside the weights of an exported model: configuration, tokenizer, index, model code."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_aqaa.checkpoint import safetensors_directory
from megatron_aqaa.checkpoint.conversion.added_tokens import SENTENCEPIECE, grow_tokenizer, known_tokens, num_ids
from megatron_aqaa.checkpoint.conversion.families import changed_config, family_of, read_config, write_config
from megatron_aqaa.checkpoint.conversion.huggingface_source import CONFIG, files_folder
from megatron_aqaa.checkpoint.conversion.model_directory import MegatronModel
from megatron_aqaa.checkpoint.conversion.plan import Weights
from megatron_aqaa.model.config import ModelConfig
from megatron_aqaa.vocabulary import Vocabulary

GENERATION = "generation_config.json"
_CODE = ("configuration_step1", "modeling_step1")
_MODEL_CODE = Path(__file__).parents[1]  # where these two lie


def exported_config(found: MegatronModel, model: ModelConfig, like: Path | None, dtype: str) -> dict[str, Any] | None:
    """`config.json`, None where that of `like` says the same and is copied byte by byte.

    Args:
        found: the checkpoint.
        model: that is exported.
        like: imported run or Hugging Face directory; None to write all anew.
        dtype: of the weights, as torch calls it.
    """
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


@dataclass(frozen=True)
class FilesBeside:
    """The files of an exported directory but its weights.

    Attributes:
        found: the checkpoint.
        like: imported run or Hugging Face directory that they are taken from; None to write them anew.
        config: from `exported_config`.
        same_files: the weights lie in the files that `like` had.
        add_audio_tokens: give the tokenizer those that `like` does not have.
        own_model_code: put this project's transformers model of Step-1 there.
    """

    found: MegatronModel
    like: Path | None
    config: dict[str, Any] | None
    same_files: bool
    add_audio_tokens: bool
    own_model_code: bool

    def write(self, weights: Weights, work: Path) -> None:
        """Write them into `work`, the configuration last: without it nothing loads the directory."""
        folder = None if self.like is None else files_folder(self.like)
        if folder is None:
            safetensors_directory.finish(work, *weights)
            _write_generation_config(work, self.found.vocabulary)
            _write_tokenizer(work, self.found)
        else:
            self._write_index(folder, weights, work)
            self._copy(folder, work)
        self._write_config(folder, work)

    def _write_index(self, folder: Path, weights: Weights, work: Path) -> None:
        index = folder / safetensors_directory.INDEX
        if self.same_files and index.exists():
            shutil.copyfile(index, work / index.name)
        else:
            safetensors_directory.finish(work, *weights)

    def _copy(self, folder: Path, work: Path) -> None:
        for file in safetensors_directory.files_beside(folder):
            if file.name != CONFIG:
                shutil.copyfile(file, work / file.name)
        if self.add_audio_tokens:
            grow_tokenizer(work, self.found.vocabulary)

    def _write_config(self, folder: Path | None, work: Path) -> None:
        config = self.config
        if config is None and folder is not None:
            if not self.own_model_code:
                shutil.copyfile(folder / CONFIG, work / CONFIG)
                return
            config = safetensors_directory.read_json(folder / CONFIG)
        assert config is not None
        if read_config(config, CONFIG).family == "step1" and (self.own_model_code or folder is None):
            config = config | {"auto_map": _model_code(work)}
        (work / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def lacks_audio_tokens(found: MegatronModel, folder: Path) -> bool:
    """Whether the model grew by audio tokens after the tokenizer in `folder` was made.

    Raises:
        ValueError: that tokenizer has other tokens where the codes are, or a gap.
    """
    vocabulary, tokens = found.vocabulary, known_tokens(folder)
    if not tokens or not vocabulary.linguistic_size or "<audio_0>" in tokens:
        return False
    if read_config(safetensors_directory.read_json(folder / CONFIG), CONFIG).vocabulary_rows >= vocabulary.size:
        return False  # as it was released
    used = num_ids(tokens)
    if used > vocabulary.text_size:
        raise ValueError(f"{folder}: its tokenizer has {used} ids, the codes of the model begin at "
                         f"{vocabulary.text_size}; give the model that it was grown from with --like")  # fmt: skip
    return True


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


def _model_code(folder: Path) -> dict[str, str]:
    """Copy the transformers model of Step-1 into `folder`; the `auto_map` that leads to it."""
    for module in _CODE:
        shutil.copyfile(_MODEL_CODE / f"{module}.py", folder / f"{module}.py")
    return {"AutoConfig": f"{_CODE[0]}.Step1Config", "AutoModelForCausalLM": f"{_CODE[1]}.Step1ForCausalLM"}
