"""Token ids as a language model of speech reads them, for benchmarks: 60 % audio, in the released vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_aqaa import ops, platform
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.vocabulary import GROUP_SIZE, Vocabulary

VOCABULARY = Vocabulary()


def mixed_ids(batch: int, length: int, run: Path | None = None, seed: int = 0) -> Tensor:
    """Text and audio in turns.

    Args:
        batch: sequences.
        length: tokens of a sequence.
        run: folder of a run with tokenized recordings, whose codes are taken; None: codes drawn evenly, so that all
            5,120 rows are in use.
        seed: of what is drawn. Text is always drawn, with word-like frequencies: a miniature's 160 pieces would all
            stay in the cache.

    Returns:
        [batch, length] int64 on the device.
    """
    random = np.random.default_rng(seed)
    count = batch * length
    groups = count * 3 // 5 // GROUP_SIZE
    audio = drawn_audio(groups, random) if run is None else real_audio(groups, random, run)
    text = (random.zipf(1.3, count - audio.size) - 1) % VOCABULARY.text_size
    ids = torch.from_numpy(ops.interleave_text_audio(text, audio)).view(batch, length)
    return ids.to(platform.device())


def drawn_audio(groups: int, random: np.random.Generator) -> NDArray[np.int64]:
    return ops.interleave_codes(
        random.integers(0, VOCABULARY.linguistic_size, 2 * groups),
        random.integers(0, VOCABULARY.semantic_size, 3 * groups),
        **VOCABULARY.audio_range,
    )


def real_audio(groups: int, random: np.random.Generator, run: Path) -> NDArray[np.int64]:
    """The first groups of the run's recordings in random order, as a training run shuffles them."""
    vocabulary = Vocabulary.load(run / "tokenizer" / "vocabulary.yaml")
    documents = Documents(run / "tokens" / "audio")
    order = random.permutation(np.flatnonzero(documents.lengths >= GROUP_SIZE))  # one pad: could not be tokenized
    order = order[: 1 + int(documents.lengths[order].cumsum().searchsorted(groups * GROUP_SIZE))]
    audio = np.concatenate([documents[int(index)].token_ids for index in order])[: groups * GROUP_SIZE]
    if len(audio) < groups * GROUP_SIZE:
        raise ValueError(f"{run}: {len(audio)} audio tokens, {groups * GROUP_SIZE} are needed")
    return audio - vocabulary.linguistic_start + VOCABULARY.linguistic_start
