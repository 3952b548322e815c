"""Chat records for tests: codes, messages, files of JSON Lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def codes(num_groups: int, seed: int = 0) -> list[int]:
    """Random codes over both codebooks, in groups `[L L S S S]`."""
    random = np.random.default_rng(seed)
    linguistic, semantic = random.integers(0, 1024, (num_groups, 2)), random.integers(1024, 5120, (num_groups, 3))
    return np.concatenate([linguistic, semantic], axis=1).ravel().tolist()


def speech(num_groups: int = 1, seed: int = 0, **keys: Any) -> dict[str, Any]:
    """An audio part with codes."""
    return {"type": "audio", "codes": codes(num_groups, seed), **keys}


def said(text: str, num_groups: int = 1, seed: int = 0) -> list[dict[str, Any]]:
    """The content of a spoken answer."""
    return [{"type": "text", "text": text}, speech(num_groups, seed)]


def user(content: Any, **keys: Any) -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": content, **keys}


def assistant(content: Any, **keys: Any) -> dict[str, Any]:
    """A message of the assistant."""
    return {"role": "assistant", "content": content, **keys}


def conversation(answer: Any = "that makes four", question: Any = "what is two plus two") -> dict[str, Any]:
    """A record of one question and its answer."""
    return {"messages": [user(question), assistant(answer)]}


def pair(chosen: Any = "that makes four", rejected: Any = "the sky is blue") -> dict[str, Any]:
    """A preference record."""
    return {"prompt": [user("what is two plus two")], "chosen": chosen, "rejected": rejected}


def write_lines(path: Path, *records: Any) -> Path:
    """Write JSON Lines; a text is written as it is."""
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path
