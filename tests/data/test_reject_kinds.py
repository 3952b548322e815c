"""Every reason that tokenizing gives is of a known kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_aqaa.audio.io import AudioError, duration_s, load_waveform
from megatron_aqaa.data.reject_kinds import OTHER, kind_of
from tests.data.damaged_audio import KINDS

READABLE = ("too_short", "ten_hours_of_silence")  # test_token_summary.py tokenizes them


def read(path: Path) -> None:
    duration_s(path)
    load_waveform(path)


@pytest.mark.parametrize("damage", [k for k in KINDS if k.__name__ not in READABLE], ids=lambda kind: kind.__name__)
def test_what_the_audio_reader_says_has_a_kind(tmp_path: Path, damage: Callable[[Path, int], None]) -> None:
    path = tmp_path / "truncated no such file.wav"  # the name is not the reason
    damage(path, 1)
    with pytest.raises(AudioError) as error:
        read(path)
    assert kind_of(str(path), str(error.value)) != OTHER


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("a.tar: not readable as an uncompressed tar (bad checksum); copy it again", "damaged tar"),
        ("a.wav: holds no samples; record it again", "empty"),
        ("a.tar: holds no samples, such as 17.flac and 17.json, but 3 other members", "tar without samples"),
        ("a.tar#1.wav: the tar ends in 1.wav: truncated, 3 of 9 bytes; copy it again", "truncated"),
        ("a.tar#1.wav: a second sample of the key '1'; members of a sample must follow each other", "duplicate key"),
        ("a.wav: something new", OTHER),
    ],
)
def test_kinds(reason: str, kind: str) -> None:
    assert kind_of(reason.partition(": ")[0], reason) == kind
