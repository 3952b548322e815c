from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_aqaa.audio.espeak import Espeak
from megatron_aqaa.config import load_config, save_config
from megatron_aqaa.data.miniature import ANSWERS, QUESTIONS, STYLES
from megatron_aqaa.data.speech_script import AssistantSettings, SpeechCorpusConfig, UserSettings, write_script

SMALL = SpeechCorpusConfig(num_train=2000, num_validation=50, num_unseen_voice=100, num_unseen_wording=100)


def test_sizes_and_ids() -> None:
    script = write_script(SMALL)
    assert [line.id for line in script] == list(range(len(script)))
    counts = Counter((line.role, line.split) for line in script)
    recordings = len(ANSWERS) * len(STYLES)
    assert counts == {
        ("user", "train"): 2000,
        ("user", "validation"): 50,
        ("user", "unseen_voice"): 100,
        ("user", "unseen_wording"): 100,
        ("assistant", "train"): 3 * recordings,
        ("assistant", "validation"): recordings,
    }


def test_voices_and_wordings_are_held_out_whole() -> None:
    script = write_script(SMALL)

    def lines(*splits: str) -> list:
        return [line for line in script if line.role == "user" and line.split in splits]

    trained, unseen_voice, unseen_wording = lines("train", "validation"), lines("unseen_voice"), lines("unseen_wording")
    assert len({line.speaker for line in trained}) == 50
    assert len({line.speaker for line in unseen_voice}) == 12
    assert not {line.speaker for line in trained} & {line.speaker for line in unseen_voice}
    assert {line.speaker for line in unseen_wording} <= {line.speaker for line in trained}
    assert not {line.text for line in trained} & {line.text for line in unseen_wording}


def test_every_answer_is_right() -> None:
    answers = {(q.text(w, s, f), q.answer) for q in QUESTIONS for w in range(5) for s in STYLES for f in (False, True)}
    for line in write_script(SMALL):
        assert line.answer is None if line.role == "assistant" else (line.text, line.answer) in answers


def test_assistant_delivers_every_answer_in_every_style() -> None:
    answers = [line for line in write_script(SMALL) if line.role == "assistant"]
    assert {(line.text, line.style) for line in answers} == {(text, style) for text in ANSWERS for style in STYLES}
    assert {line.speaker for line in answers} == {"en-us+f2"}
    for line in answers:
        expected = getattr(SMALL.assistant, line.style)
        assert abs(line.delivery.rate_wpm - expected.rate_wpm) <= 5
        assert abs(line.delivery.pitch - expected.pitch) <= 3


def test_same_seed_same_script_and_splits_are_independent() -> None:
    assert write_script(SMALL) == write_script(SMALL)
    assert write_script(replace(SMALL, seed=1)) != write_script(SMALL)
    longer = [replace(line, id=0) for line in write_script(replace(SMALL, num_train=2001)) if line.split != "train"]
    assert longer == [replace(line, id=0) for line in write_script(SMALL) if line.split != "train"]


def test_all_voices_exist() -> None:
    """The library speaks with its plain voice where a variant is misspelt; names are case-sensitive."""
    with Espeak() as engine:
        user = UserSettings()
        assert {*user.voices, *user.unseen_voices, AssistantSettings().voice} <= engine.variants


def test_settings_survive_a_file(tmp_path: Path) -> None:
    save_config(SMALL, tmp_path / "speech.yaml")
    assert load_config(SpeechCorpusConfig, tmp_path / "speech.yaml") == SMALL


def test_the_example_is_the_default() -> None:
    assert load_config(SpeechCorpusConfig, "examples/tiny_cpu/speech.yaml") == SpeechCorpusConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"voices": ("m1", "m4")}, "m4 also occur"),
        ({"voices": ()}, "at least one voice"),
        ({"rate_wpm": (200, 100)}, r"user.rate_wpm: \[200, 100\]"),
    ],
)
def test_user_settings_refuse(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UserSettings(**values)


@pytest.mark.parametrize("values", [{"num_train": -1}, {"num_workers": -1}, {"utterances_per_block": 0}])
def test_config_refuses(values: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(values))}: .* expected at least"):
        SpeechCorpusConfig(**values)
