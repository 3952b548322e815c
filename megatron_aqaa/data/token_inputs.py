"""What the blocks of a folder were made of, noted by the first process that works there and checked by all others."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_aqaa.audio.io import RESAMPLER
from megatron_aqaa.tokenizer.open import tokenizer_files


def claim(note: Path, sources: Sequence[Path], tokenizer: Path, settings: Mapping[str, Any]) -> None:
    """Note the inputs in `note`, or check them against it.

    Args:
        note: in the folder of the blocks; made once, by whichever process comes first.
        sources: manifest or tars.
        tokenizer: tokenizer directory.
        settings: that change tokens or blocks.

    Raises:
        ValueError: the folder holds blocks of other inputs; says what differs.
    """
    inputs = {**settings, "files": _stamps([*sources, *tokenizer_files(tokenizer)]), "resampler": RESAMPLER}
    if not note.exists():
        _write_first(note, json.dumps(inputs))
    noted = {**inputs, **json.loads(note.read_text())}  # an older note does not have every setting
    changed = [name for name in inputs if noted[name] != inputs[name]]
    if changed:
        differing = ("files" if name == "files" else f"{name} {noted[name]} → {inputs[name]}" for name in changed)
        raise ValueError(
            f"{note.parent.parent}: holds tokens of another manifest or tokenizer, or of other settings "
            f"({', '.join(differing)}); delete it or name another"
        )


def _stamps(files: Sequence[Path]) -> list[list[int]]:
    stats = [path.stat() for path in files]
    return [[found.st_size, found.st_mtime_ns] for found in stats]


def _write_first(note: Path, text: str) -> None:
    """Write a file that other processes may be writing too: whole, and the first one stays."""
    note.parent.mkdir(parents=True, exist_ok=True)
    own = note.with_name(f"{note.name}.{secrets.token_hex(6)}.partial")
    own.write_text(text)
    try:
        os.link(own, note)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not note.exists():
            os.replace(own, note)
            return
    own.unlink()
