"""Text files that are whole or not there, whatever happens to the process that writes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def partial_path(path: Path) -> Path:
    """Where a file is before it is whole."""
    return path.with_name(path.name + ".partial")


def write_whole(path: Path, text: str) -> None:
    """Write `text`; the file gets its name once it is on the disk, so a power cut leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    with partial.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def write_json(path: Path, content: Any) -> None:
    """`write_whole` of a value as indented JSON."""
    write_whole(path, json.dumps(content, indent=1) + "\n")
