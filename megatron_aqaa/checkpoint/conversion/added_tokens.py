"""Audio tokens for a text model: where their ids go, and the tokenizer files that know them by name.

Text `<audio_0>` … `<audio_5119>` stands for the codes of both codebooks, as in the released Step-Audio tokenizer. A
Hugging Face `tokenizer.json` gets them as added tokens, a SentencePiece model as user-defined pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sentencepiece

from megatron_aqaa.checkpoint.safetensors_directory import read_json
from megatron_aqaa.vocabulary import Vocabulary

TOKENIZER, TOKENIZER_CONFIG, ADDED, SENTENCEPIECE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "tokenizer.model",
)
MARKERS = {"bot": ("<|BOT|>", "<|im_start|>"), "eot": ("<|EOT|>", "<|im_end|>", "<|eot_id|>")}
"""Turn markers, and what other chat templates call them; ours first."""
_WORDS = "vocab.json"  # of a byte-pair tokenizer in several files
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # of SentencePiece's ModelProto.SentencePiece.Type
_PIECES_FIELD = 1


def known_tokens(folder: Path) -> dict[str, int]:
    """Token → id of the tokenizer in `folder`, empty where there is none.

    Raises:
        ValueError: a file is damaged; names it.
    """
    if (folder / TOKENIZER).exists():
        found = _json_tokens(folder / TOKENIZER)
    elif (folder / SENTENCEPIECE).exists():
        found = {piece: index for index, piece in enumerate(_pieces(folder / SENTENCEPIECE))}
    elif (folder / _WORDS).exists():
        found = dict(read_json(folder / _WORDS))
    else:
        return {}
    if (folder / TOKENIZER_CONFIG).exists():
        decoder = read_json(folder / TOKENIZER_CONFIG).get("added_tokens_decoder", {})
        found |= {token["content"]: int(token_id) for token_id, token in decoder.items()}
    return found | (read_json(folder / ADDED) if (folder / ADDED).exists() else {})


def _json_tokens(path: Path) -> dict[str, int]:
    values = read_json(path)
    try:
        vocabulary = values["model"]["vocab"]
        found = dict(vocabulary) if isinstance(vocabulary, dict) else {t: i for i, (t, _) in enumerate(vocabulary)}
        return found | {token["content"]: token["id"] for token in values.get("added_tokens", ())}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a file of the tokenizers package ({error!r}); copy it again") from None


def _pieces(path: Path) -> list[str]:
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: not a SentencePiece model ({error}); copy it again") from None
    return [processor.id_to_piece(index) for index in range(processor.get_piece_size())]


def num_ids(tokens: Mapping[str, int]) -> int:
    """Ids that a tokenizer uses, all below this number.

    Raises:
        ValueError: some below have no token. New tokens are numbered on from their count, so they would get other ids.
    """
    used = max(tokens.values(), default=-1) + 1
    absent = sorted({*range(used)} - {*tokens.values()})
    if absent:
        raise ValueError(f"the tokenizer has ids up to {used - 1}, but no token {absent[0]} ({len(absent)} such in "
                         "all); give these ids names in its files before audio tokens are added")  # fmt: skip
    return used


def new_tokens(vocabulary: Vocabulary) -> Iterator[tuple[int, str, bool]]:
    """Id, text, and whether it is a marker, of everything behind the text ids."""
    for code in range(vocabulary.linguistic_size + vocabulary.semantic_size):
        yield vocabulary.linguistic_start + code, f"<audio_{code}>", False
    names = {vocabulary.audio_start: "<audio_start>", vocabulary.audio_end: "<audio_end>"}
    names |= {vocabulary.bot: MARKERS["bot"][0], vocabulary.eot: MARKERS["eot"][0]}
    for token_id in range(vocabulary.audio_stop, vocabulary.size):
        yield token_id, names.get(token_id, f"<unused_{token_id}>"), True


def grow_tokenizer(folder: Path, vocabulary: Vocabulary) -> list[str]:
    """Give the tokenizer files in `folder` all ids up to `vocabulary.size`.

    Returns:
        Names of the files that were changed.
    """
    tokens = known_tokens(folder)
    if not tokens:
        return []
    first = num_ids(tokens)
    # Both formats number new tokens on without gaps: ids between the last text token and the codes get names too.
    fillers = [(token_id, f"<unused_{token_id}>", True) for token_id in range(first, vocabulary.text_size)]
    added = [*fillers, *new_tokens(vocabulary)]
    names = {token_id: text for text, token_id in tokens.items()}
    named = [(token_id, names[token_id], True) for token_id in range(first)]
    changed = []
    for name, grow, new in (
        (TOKENIZER, _grow_json, added),
        (TOKENIZER_CONFIG, _grow_config, added),
        (ADDED, _grow_added, added),
        (SENTENCEPIECE, _grow_pieces, [*named, *added]),
    ):
        if (folder / name).exists():
            grow(folder / name, new)
            changed.append(name)
    return changed


def _entry(text: str, is_marker: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": text, **flags, "special": is_marker}


def _grow_json(path: Path, added: list[tuple[int, str, bool]]) -> None:
    values = read_json(path)
    values.setdefault("added_tokens", []).extend({"id": i, **_entry(text, marker)} for i, text, marker in added)
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n")


def _grow_config(path: Path, added: list[tuple[int, str, bool]]) -> None:
    values = read_json(path)
    decoder = values.setdefault("added_tokens_decoder", {})
    decoder.update({str(token_id): _entry(text, marker) for token_id, text, marker in added})
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n")


def _grow_added(path: Path, added: list[tuple[int, str, bool]]) -> None:
    values = read_json(path) | {text: token_id for token_id, text, _ in added}
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n")


def _grow_pieces(path: Path, added: list[tuple[int, str, bool]]) -> None:
    """Append to the file what it lacks: a repeated field of a protocol buffer goes on wherever it stands.

    That may be more than the new tokens: `tokenizer.json` and `added_tokens.json` know tokens that are no pieces.
    """
    first = len(_pieces(path))
    with path.open("ab") as file:
        for _, text, is_marker in added[first:]:
            kind = _USER_DEFINED if not is_marker else _UNUSED if text.startswith("<unused_") else _CONTROL
            name = text.encode()
            piece = b"\x0a" + _varint(len(name)) + name + b"\x15\x00\x00\x00\x00" + b"\x18" + _varint(kind)
            file.write(bytes([_PIECES_FIELD << 3 | 2]) + _varint(len(piece)) + piece)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
