"""Token ids written as text, for the command line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt


def read_ids(source: str | Path) -> npt.NDArray[np.int64]:
    """Ids of a text file, "-" for standard input, separated by blanks, commas or line ends.

    Raises:
        ValueError: the file cannot be read, or a word is not an id.
    """
    text = sys.stdin.read() if source == "-" else _text(Path(source))
    words = re.split(r"[\s,]+", text.strip())
    wrong = [word for word in words if not re.fullmatch(r"-?\d{1,18}", word)]
    if wrong:
        raise ValueError(f"{source}: {wrong[0]!r} is not a token id")
    return np.array(words, dtype=np.int64)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text: {error}") from None
