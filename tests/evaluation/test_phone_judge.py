from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_aqaa.evaluation.lexicon import Lexicon
from megatron_aqaa.evaluation.phone_judge import PhoneJudge, spoken_phones
from megatron_aqaa.network_file import save_network
from megatron_aqaa.tokenizer.linguistic import LinguisticConfig, LinguisticEncoder
from tests.tokenizer.released.files import SMALL
from tests.tokenizer.tiny import speech

UNITS = ["_", "a", "i", "s"]
LEXICON = Lexicon({"ah": ["a"], "sea": ["s", "i"]})


def write_judge(directory: Path) -> Path:
    """A judge with random weights."""
    torch.manual_seed(0)
    encoder = LinguisticEncoder(LinguisticConfig(kind="sanm", sanm=SMALL), UNITS)
    encoder.feature_norm.mean.fill_(10.0)
    encoder.feature_norm.deviation.fill_(4.0)
    save_network(encoder, directory / "linguistic.pt", units=UNITS)
    return directory


def test_what_is_heard_does_not_depend_on_level_or_on_what_came_before(tmp_path: Path) -> None:
    judge = PhoneJudge.load(write_judge(tmp_path), LEXICON)
    first, second = (torch.from_numpy(speech(seed, 8)[0]) for seed in (1, 2))
    heard = judge.phones(first)
    judge.phones(second)
    assert judge.phones(first) == heard and set(heard) <= set(UNITS[1:])
    assert judge.recognise(first).split() == LEXICON.spell(heard)


def test_digital_silence_is_heard(tmp_path: Path) -> None:
    judge = PhoneJudge.load(write_judge(tmp_path), LEXICON)
    assert all(phone in UNITS for phone in judge.phones(torch.zeros(16_000)))


def test_what_was_said_comes_from_the_manifest(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl"
    phones = [[0.0, "_"], [0.1, "'a"], [0.2, "a"], [0.3, "_:"], [0.4, "s"], [0.5, ";"], [0.6, ",i"]]
    manifest.write_text(json.dumps({"phones": phones}) + "\n" + json.dumps({"text": "no phones"}) + "\n")
    with pytest.raises(ValueError, match=r"manifest.jsonl:2: no phones"):
        spoken_phones(manifest)
    manifest.write_text(json.dumps({"phones": phones}) + "\n")
    assert spoken_phones(manifest) == [["a", "s", "i"]]
