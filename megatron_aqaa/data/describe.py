"""A document as text that a person can read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from megatron_aqaa.data.indexed import Document
from megatron_aqaa.tokenizer.text import TextCodec
from megatron_aqaa.vocabulary import GROUP_DURATION_S, GROUP_SIZE, Vocabulary


def describe(document: Document, text: TextCodec, vocabulary: Vocabulary) -> str:
    """One line for every run of text or audio; `*` marks what the loss is on.

    Audio tokens are written `<audio_17>`, counted over both codebooks, linguistic codes first, as in the released
    checkpoints; groups of five are set apart.
    """
    audio, targets = vocabulary.is_audio(document.token_ids), document.loss_mask
    positions = range(len(document.token_ids))
    runs = groupby(positions, key=lambda i: (bool(audio[i]), bool(targets[i])))
    return "\n".join(
        f"{'*' if is_target else ' '} {_run(is_audio, document.token_ids[list(run)].tolist(), text, vocabulary)}"
        for (is_audio, is_target), run in runs
    )


def describe_pair(chosen: Document, rejected: Document, text: TextCodec, vocabulary: Vocabulary) -> str:
    """A preference pair: the prompt once, then both answers, each as `describe` shows them."""
    start = int(chosen.loss_mask.argmax())
    prompt, answers = _from(chosen, 0, start), [_from(half, start, None) for half in (chosen, rejected)]
    shown = [describe(part, text, vocabulary) for part in (prompt, *answers)]
    return "{}\nchosen\n{}\nrejected\n{}".format(*shown)


def _from(document: Document, start: int, stop: int | None) -> Document:
    return Document(document.token_ids[start:stop], document.loss_mask[start:stop])


def _run(is_audio: bool, token_ids: list[int], text: TextCodec, vocabulary: Vocabulary) -> str:
    if not is_audio:
        return f"{len(token_ids):4d} text   {''.join(_words(token_ids, text, vocabulary))}"
    groups = (token_ids[start : start + GROUP_SIZE] for start in range(0, len(token_ids), GROUP_SIZE))
    codes = (" ".join(f"<audio_{i - vocabulary.linguistic_start}>" for i in group) for group in groups)
    duration_s = len(token_ids) / GROUP_SIZE * GROUP_DURATION_S
    return f"{len(token_ids):4d} audio  {duration_s:.2f} s: {' | '.join(codes)}"


def _words(token_ids: list[int], text: TextCodec, vocabulary: Vocabulary) -> Iterator[str]:
    markers = {
        vocabulary.pad: "<pad>",
        vocabulary.bos: "<s>",
        vocabulary.eot: "<|EOT|>",
        vocabulary.bot: "<|BOT|>",
        vocabulary.audio_start: "<audio_start>",
        vocabulary.audio_end: "<audio_end>",
    }
    for is_marker, run in groupby(token_ids, key=lambda i: i in markers):
        if is_marker:
            yield "".join(markers[token_id] for token_id in run)
        else:
            yield text.decode(list(run)).replace("\n", "\\n")
