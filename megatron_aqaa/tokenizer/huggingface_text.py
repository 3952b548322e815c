"""Text ids of a Llama or Qwen model, from its `tokenizer.json`; and opening a text model of either kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from megatron_aqaa.tokenizer.text import TextCodec, TextTokenizer

# In a tokenizer folder, in a Hugging Face directory, and in a run that tools/convert_checkpoint.py imported.
_PLACES = ("text.model", "tokenizer.json", "huggingface/files/tokenizer.json")
_FIRST_CODE = "<audio_0>"


def text_file(path: Path) -> Path:
    """The text model of a folder; a path that is no folder is one itself."""
    places = [path / place for place in _PLACES]
    return next((place for place in places if place.exists()), places[0]) if path.is_dir() else path


def open_text(path: Path) -> TextCodec:
    """Read a text model, of a folder or a file: SentencePiece, or a `tokenizer.json`.

    Raises:
        ValueError: there is none, or it is damaged; names it.
    """
    file = text_file(path)
    return HuggingFaceText(file) if file.suffix == ".json" else TextTokenizer(file)


class HuggingFaceText:
    """Text ↔ ids of a `tokenizer.json`, grown by audio tokens or not.

    Raises:
        ValueError: the file is missing or is no such tokenizer, or the `tokenizers` package is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ImportError:
            raise ValueError(f"{path}: needs the tokenizers package: pip install 'megatron-aqaa[hf]'") from None
        if not path.is_file():
            raise ValueError(f"{path}: no such tokenizer; copy the one of the model")
        try:
            values = json.loads(path.read_bytes())
            added = values["added_tokens"]
            first = next((token["id"] for token in added if token["content"] == _FIRST_CODE), None)
            # Codes and markers are never part of a text: one that is written out in it stays text.
            kept = [token for token in added if first is None or token["id"] < first]
            plain = values | {"added_tokens": kept, "truncation": None, "padding": None}
            self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(plain))
        except Exception as error:  # of the package, which has no class of its own
            raise ValueError(f"{path}: not a tokenizer.json ({error}); copy the one of the model") from None
        self.tokenizer.encode_special_tokens = True
        self._size = self.tokenizer.get_vocab_size() if first is None else int(first)

    def __len__(self) -> int:
        return self._size

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without any that a template would put around it."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_role(self, role: str) -> list[int]:
        """Ids of `"{role}\\n"`."""
        return self.encode(f"{role}\n")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids; markers give nothing."""
        return str(self.tokenizer.decode([int(token_id) for token_id in token_ids], skip_special_tokens=True))
