"""Audio tokens for a text model: where their ids go, and the tokenizer files that know them by name.

Text `<audio_0>` … `<audio_5119>` stands for the codes of both codebooks, as in the released Step-Audio tokenizer. A
Hugging Face `tokenizer.json` gets them as added tokens, a SentencePiece model as user-defined pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_aqaa.vocabulary import Vocabulary

TOKENIZER, TOKENIZER_CONFIG, ADDED, SENTENCEPIECE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "tokenizer.model",
)
_MARKERS = {"bot": ("<|BOT|>", "<|im_start|>"), "eot": ("<|EOT|>", "<|im_end|>", "<|eot_id|>")}
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # of SentencePiece's ModelProto.SentencePiece.Type
_PIECES_FIELD = 1


def known_tokens(folder: Path) -> dict[str, int]:
    """Token → id of the tokenizer in `folder`, empty where there is none."""
    if (folder / TOKENIZER).exists():
        values = json.loads((folder / TOKENIZER).read_text())
        vocabulary = values["model"]["vocab"]
        found = dict(vocabulary) if isinstance(vocabulary, dict) else {t: i for i, (t, _) in enumerate(vocabulary)}
        return found | {token["content"]: token["id"] for token in values.get("added_tokens", ())}
    if (folder / SENTENCEPIECE).exists():
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE))
        return {processor.id_to_piece(index): index for index in range(processor.get_piece_size())}
    return {}


def grown_vocabulary(text: Vocabulary, tokens: Mapping[str, int], base: int | None) -> Vocabulary:
    """Layout of a text model with both codebooks and the markers.

    The turn markers are `<|BOT|>` and `<|EOT|>`, or those of the chat template that the tokenizer has; where it has
    none, new ids follow the audio markers.

    Args:
        text: layout of the text model.
        tokens: of its tokenizer.
        base: id of the first code; None for the first after all rows of the text model.

    Raises:
        ValueError: the codes would lie on text ids, or leave a gap.
    """
    base = text.size if base is None else base
    used = max(tokens.values(), default=-1) + 1
    if not max(used, 2) <= base <= text.size:
        raise ValueError(f"--audio-base {base}: must lie behind the tokenizer's {used} ids and within the {text.size} "
                         "rows of the text model or right behind them")  # fmt: skip
    grown = Vocabulary.for_text(base, bos=_within(text.bos, base), pad=_within(text.pad, base), eot=0, bot=0)
    size, markers = grown.size, {}
    for marker, names in _MARKERS.items():
        markers[marker] = next((tokens[name] for name in names if name in tokens), size)
        size += markers[marker] == size
    return Vocabulary(
        **{**vars(grown), **markers, "size": size},
    )


def _within(token_id: int, base: int) -> int:
    return token_id if token_id < base else 0


def new_tokens(vocabulary: Vocabulary) -> Iterator[tuple[int, str, bool]]:
    """Id, text, and whether it is a marker, of everything behind the text ids."""
    for code in range(vocabulary.linguistic_size + vocabulary.semantic_size):
        yield vocabulary.linguistic_start + code, f"<audio_{code}>", False
    names = {vocabulary.audio_start: "<audio_start>", vocabulary.audio_end: "<audio_end>"}
    names |= {vocabulary.bot: _MARKERS["bot"][0], vocabulary.eot: _MARKERS["eot"][0]}
    for token_id in range(vocabulary.audio_stop, vocabulary.size):
        yield token_id, names.get(token_id, f"<unused_{token_id}>"), True


def grow_tokenizer(folder: Path, vocabulary: Vocabulary) -> list[str]:
    """Give the tokenizer files in `folder` all ids up to `vocabulary.size`.

    Returns:
        Names of the files that were changed.
    """
    tokens = known_tokens(folder)
    first = max(tokens.values(), default=-1) + 1
    # Both formats number new tokens on without gaps: ids between the last text token and the codes get names too.
    fillers = [(token_id, f"<unused_{token_id}>", True) for token_id in range(first, vocabulary.text_size)]
    added = [*fillers, *new_tokens(vocabulary)]
    changed = []
    for name, grow in (
        (TOKENIZER, _grow_json),
        (TOKENIZER_CONFIG, _grow_config),
        (ADDED, _grow_added),
        (SENTENCEPIECE, _grow_pieces),
    ):
        if (folder / name).exists():
            grow(folder / name, added)
            changed.append(name)
    return changed


def _entry(text: str, is_marker: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": text, **flags, "special": is_marker}


def _grow_json(path: Path, added: list[tuple[int, str, bool]]) -> None:
    values = json.loads(path.read_text())
    values.setdefault("added_tokens", []).extend({"id": i, **_entry(text, marker)} for i, text, marker in added)
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n")


def _grow_config(path: Path, added: list[tuple[int, str, bool]]) -> None:
    values = json.loads(path.read_text())
    decoder = values.setdefault("added_tokens_decoder", {})
    decoder.update({str(token_id): _entry(text, marker) for token_id, text, marker in added})
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n")


def _grow_added(path: Path, added: list[tuple[int, str, bool]]) -> None:
    values = json.loads(path.read_text()) | {text: token_id for token_id, text, _ in added}
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n")


def _grow_pieces(path: Path, added: list[tuple[int, str, bool]]) -> None:
    """Append to the file: a repeated field of a protocol buffer goes on wherever it stands."""
    with path.open("ab") as file:
        for _, text, is_marker in added:
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
