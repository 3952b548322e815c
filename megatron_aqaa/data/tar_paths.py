"""Which tars a setting means."""

from __future__ import annotations

import re
from pathlib import Path

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz)$")


def names_tars(path: Path) -> bool:
    """Whether `path` means tars and not a manifest: it is a folder, or ends in `.tar`.

    Raises:
        ValueError: compressed tars.
    """
    if _COMPRESSED.search(path.name):
        raise ValueError(f"{path}: compressed; members are read singly, so make it a plain .tar (gunzip, unzstd)")
    return path.suffix == ".tar" or path.is_dir()


def tar_paths(path: Path) -> list[Path]:
    """Absolute paths of the tars that are meant, in order: a folder's, `a.tar`, `a-*.tar`, or `a-{000..031}.tar`.

    Raises:
        ValueError: there are none, or one of those that are named is missing.
    """
    numbers = _RANGE.search(path.name)
    if numbers is not None:
        first, last = numbers.groups()
        texts = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        found = [path.with_name(_RANGE.sub(text, path.name, count=1)) for text in texts]
    else:
        found = sorted(path.glob("*.tar") if path.is_dir() else path.parent.glob(path.name))
    missing = [tar for tar in found if not tar.is_file()]
    if missing or not found:
        raise ValueError(f"{missing[0] if missing else path}: no such tar")
    return [tar.absolute() for tar in found]
