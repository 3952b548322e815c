"""Phones as recognisers say them: one for each 10 ms, and what sequence that stands for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby


def phone_runs(frames: Sequence[int], silent: Collection[int]) -> list[int]:
    """Phones of a frame sequence: runs of at least 20 ms, without those in `silent`, neighbours merged."""
    runs = [phone for phone, run in groupby(frames) if phone not in silent and len(list(run)) >= 2]
    return [phone for phone, _ in groupby(runs)]


def silent_phones(names: Sequence[str]) -> set[int]:
    """Indices of silence and espeak's pauses; a recogniser is not judged by them."""
    return {i for i, name in enumerate(names) if name.startswith("_") or name == ";"}


def unstressed(phone: str) -> str:
    """Phone without espeak's stress marks: which words are stressed changes with the wording, what is said does not."""
    return phone.lstrip("',")
