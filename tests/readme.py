"""The README's tables, which tests hold against the code."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def table(*columns: str) -> list[list[str]]:
    """Rows of the table with this header, cell by cell."""
    lines = iter(README.read_text().splitlines())
    if not any(_cells(line) == list(columns) for line in lines):
        raise AssertionError(f"README.md has no table with the columns {columns}")
    next(lines)  # the rule under the header
    return [_cells(line) for line in takewhile(lambda line: line.startswith("|"), lines)]


def quoted(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
