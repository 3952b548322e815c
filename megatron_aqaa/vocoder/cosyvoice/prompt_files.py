"""A voice prompt from files: a recording, and the token ids of the same one."""

from __future__ import annotations

from pathlib import Path

from megatron_aqaa.audio.io import load_waveform
from megatron_aqaa.vocoder.cosyvoice.full_size_vocoder import FullSizeVocoder
from megatron_aqaa.vocoder.cosyvoice.spoken_tokens import SpokenTokens
from megatron_aqaa.vocoder.id_text import read_ids
from megatron_aqaa.vocoder.token_vocoder import TokenVocoder


def read_prompt(
    vocoder: TokenVocoder | FullSizeVocoder, audio: Path | None, ids: Path | None
) -> dict[str, SpokenTokens]:
    """The prompt as an argument of the vocoder's `synthesize` and `stream`; none if no files are given.

    Args:
        vocoder: is to speak with the voice.
        audio: wav, flac, ogg or mp3.
        ids: text file of its token ids.

    Raises:
        ValueError: one file without the other, one that cannot be read, two that do not fit each other, or a vocoder
            that takes no prompt.
    """
    if audio is None and ids is None:
        return {}
    if audio is None or ids is None:
        raise ValueError("--prompt-audio and --prompt-ids need each other: a recording, and the ids of the same one")
    if not isinstance(vocoder, FullSizeVocoder):
        raise ValueError("the miniature vocoder takes no voice prompt; one of flow/ and hift/ does")
    waveform, token_ids = load_waveform(audio, vocoder.sample_rate_hz), read_ids(ids)
    try:
        return {"prompt": vocoder.prompt(waveform, token_ids)}
    except ValueError as error:
        raise ValueError(f"{audio} with {ids}: {error}") from None
