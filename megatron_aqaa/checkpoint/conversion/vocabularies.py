"""The id layout of an imported model: as its directory or the user says, or that of a text model grown by the codes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from megatron_aqaa.checkpoint.conversion.added_tokens import MARKERS, known_tokens, num_ids
from megatron_aqaa.checkpoint.conversion.families import HuggingFaceModel
from megatron_aqaa.vocabulary import Vocabulary


def imported_vocabulary(
    source: Path,
    config: Mapping[str, Any],
    described: HuggingFaceModel,
    given: Path | None = None,
    add_audio_tokens: bool = False,
    audio_base: int | None = None,
) -> Vocabulary:
    """Id layout that a model is imported with.

    Args:
        source: Hugging Face directory.
        config: values of its `config.json`.
        described: what these say.
        given: YAML file with the layout; None takes what `config` says, or the released layout.
        add_audio_tokens: grow that of a text model by both codebooks and the markers.
        audio_base: id of the first code; None for the first behind the text model's rows.

    Raises:
        ValueError: the layout is not known or has another size than the tables, has audio tokens already, or leaves no
            room at `audio_base`.
    """
    found = _known_vocabulary(source, config, described, given, add_audio_tokens)
    if found.size != described.vocabulary_rows:
        raise ValueError(f"{source}: has {described.vocabulary_rows} ids, the vocabulary {found.size}; give the "
                         "vocabulary file of this model")  # fmt: skip
    if not add_audio_tokens:
        return found
    if found.linguistic_size or found.semantic_size:
        raise ValueError(f"{source}: has audio tokens already; leave out --add-audio-tokens")
    return grown_vocabulary(found, known_tokens(source), audio_base)


def _known_vocabulary(
    source: Path, config: Mapping[str, Any], described: HuggingFaceModel, given: Path | None, will_grow: bool
) -> Vocabulary:
    if given is not None:
        return Vocabulary.load(given)
    if described.vocabulary is not None:
        return described.vocabulary
    if described.family == "step1" and described.vocabulary_rows == Vocabulary.size:
        return Vocabulary()
    if described.family == "step1" and not will_grow:
        raise ValueError(f"{source}: vocab_size = {described.vocabulary_rows} is not the released layout; say with "
                         "--vocabulary FILE.yaml what the ids mean")  # fmt: skip
    return text_vocabulary(config)


def text_vocabulary(config: Mapping[str, Any]) -> Vocabulary:
    """Id layout of a text model: no codes, and markers that nothing uses before audio tokens are added."""
    size = cast(int, config["vocab_size"])
    bos, eos, pad = (_first(config.get(f"{name}_token_id")) for name in ("bos", "eos", "pad"))
    eot = next(token for token in (eos, bos, 0) if token is not None)
    markers = {"bos": bos if bos is not None else eot, "eot": eot, "bot": eot, "pad": pad if pad is not None else eot}
    return Vocabulary(
        text_size=size, linguistic_size=0, semantic_size=0, size=size, audio_start=eot, audio_end=eot, **markers
    )


def _first(token_ids: Any) -> int | None:
    """Llama 3 has several ends."""
    found = token_ids[0] if isinstance(token_ids, list) and token_ids else token_ids
    return found if isinstance(found, int) and found >= 0 else None


def grown_vocabulary(text: Vocabulary, tokens: Mapping[str, int], base: int | None) -> Vocabulary:
    """Layout of a text model with both codebooks and the markers.

    The turn markers are `<|BOT|>` and `<|EOT|>`, or those of the chat template that the tokenizer has; where it has
    none, new ids follow the audio markers.

    Args:
        text: layout of the text model.
        tokens: of its tokenizer.
        base: id of the first code; None for the first after all rows of the text model.

    Raises:
        ValueError: the codes would lie on text ids, or leave a gap, or the tokenizer has one.
    """
    base = text.size if base is None else base
    used = num_ids(tokens)
    if not max(used, 2) <= base <= text.size:
        raise ValueError(f"--audio-base {base}: must lie behind the tokenizer's {used} ids and within the {text.size} "
                         "rows of the text model or right behind them")  # fmt: skip
    grown = Vocabulary.for_text(base, bos=_within(text.bos, base), pad=_within(text.pad, base), eot=0, bot=0)
    size, markers = grown.size, {}
    for marker, names in MARKERS.items():
        markers[marker] = next((tokens[name] for name in names if name in tokens), size)
        size += markers[marker] == size
    return Vocabulary(
        **{**vars(grown), **markers, "size": size},
    )


def _within(token_id: int, base: int) -> int:
    return token_id if token_id < base else 0
