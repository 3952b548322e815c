"""A second judge, of phones and of open sequences of words: a recogniser trained on natural recordings alone.

PocketSphinx (`judge`) misses 2 of 3 words of synthetic voices when the domain's words may come in any order, so it
can only choose among whole sentences. This one is a phone recogniser of another kind than the tokenizers', with another
front end and another seed (`examples/tiny_cpu/judge.yaml`), and takes no part in training anything. Judge the original
recordings first: what it misses there is its own error.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from megatron_aqaa.evaluation.lexicon import Lexicon
from megatron_aqaa.network_file import load_network
from megatron_aqaa.tokenizer.centroids import MADE_BY
from megatron_aqaa.tokenizer.features import prepare_waveform
from megatron_aqaa.tokenizer.front_ends import FRONT_ENDS
from megatron_aqaa.tokenizer.linguistic import LinguisticConfig, LinguisticEncoder
from megatron_aqaa.tokenizer.phones import phone_runs, silent_phones, unstressed

_DITHER = 30 / 32768  # synthetic and decoded speech may hold exact digital silence, which no recording has


class PhoneJudge:
    """Hears phones, and the words of a lexicon in any order.

    Args:
        encoder: trained with frame labels.
        lexicon: the words that may come.
    """

    def __init__(self, encoder: LinguisticEncoder, lexicon: Lexicon) -> None:
        self.encoder, self.lexicon = encoder.eval(), lexicon
        self.front_end = FRONT_ENDS[encoder.config.front_end]()
        self.silent = silent_phones(encoder.units)

    @classmethod
    def load(cls, directory: Path, lexicon: Lexicon) -> PhoneJudge:
        """Read `linguistic.pt` of a directory that tools/train_tokenizer.py wrote.

        Raises:
            ValueError: it is missing or damaged.
        """
        return cls(load_network(LinguisticEncoder, LinguisticConfig, directory / "linguistic.pt", MADE_BY), lexicon)

    @torch.inference_mode()
    def phones(self, waveform: Tensor) -> list[str]:
        """Names of the phones in [N] samples at 16 kHz, without silence."""
        noise = torch.randn(len(waveform), generator=torch.Generator().manual_seed(0))
        features = self.front_end(prepare_waveform(waveform + _DITHER * noise))[None]
        hidden = self.encoder(features, torch.tensor([features.shape[1]]))
        frames = self.encoder.unit_logits(hidden)[0].argmax(-1).tolist()
        return [self.encoder.units[phone] for phone in phone_runs(frames, self.silent)]

    def recognise(self, waveform: Tensor) -> str:
        """The words in [N] samples at 16 kHz."""
        return " ".join(self.lexicon.spell(self.phones(waveform)))


def spoken_phones(manifest: Path) -> list[list[str]]:
    """What was really said in each line of a manifest with `phones`: their names, without silence and stress.

    Raises:
        ValueError: a line has no phones.
    """
    lines = manifest.read_text(encoding="utf-8").splitlines()
    return [_names(json.loads(line), f"{manifest}:{number}") for number, line in enumerate(lines, start=1)]


def _names(record: dict[str, list[tuple[float, str]]], where: str) -> list[str]:
    if "phones" not in record:
        raise ValueError(f"{where}: no phones; the phone judge needs `phones`: [[start in seconds, name], …]")
    names = [unstressed(name) for _, name in record["phones"]]
    silent = silent_phones(names)
    return [name for name, _ in groupby(name for i, name in enumerate(names) if i not in silent)]
