"""What the output of a merge knows of it: a note of what is done, later the record."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_aqaa.checkpoint.output_files import OutputFile

RECORD = "merge_record.json"
STATE = "merge_state.json"  # what is done, while the record is not yet there
Digests = dict[str, list[str]]
"""Region of a file → sha256 of each model's elements."""


def earlier_merge(
    output: Path, digest: str, files: list[OutputFile], names_beside: list[str]
) -> tuple[dict[str, Digests], list[str]]:
    """Files of an earlier run that still count, and those that do not and will go.

    Args:
        output: directory.
        digest: of the merge that is wanted.
        files: that it writes.
        names_beside: what it writes anew in any case.

    Raises:
        ValueError: `output` holds something that no merge made, or a note that cannot be read.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return {}, []
    note = next((output / name for name in (RECORD, STATE) if (output / name).exists()), None)
    if note is None:
        raise ValueError(f"{output}: is there already and no merge made it; name another output, or remove it")
    try:
        earlier = json.loads(note.read_text())
        earlier_digest, names, marked = earlier["digest"], earlier["files"], earlier["done"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{note}: cannot be read ({error}); remove {output} and merge again") from None
    if earlier_digest != digest:
        return {}, [name for name in names if name not in names_beside]
    sizes = {output / file.name: file.size for file in files}
    done = {
        name: digests
        for name, digests in marked.items()
        if (output / name).exists() and (output / name).stat().st_size == sizes[output / name]
    }
    return done, [name for name in names if name not in names_beside and output / name not in sizes]
