"""A recording inside a tar, read where it lies: nothing is unpacked."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO


@dataclass(frozen=True)
class TarMember:
    """A file in an uncompressed tar.

    Attributes:
        tar: the archive.
        name: of the member.
        offset: of its first byte in the archive.
        size: its bytes.
    """

    tar: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.tar}#{self.name}"

    def open(self) -> Window:
        """The member as a file.

        Raises:
            OSError: the archive cannot be opened.
        """
        return Window(self.tar.open("rb"), self.offset, self.size)


class Window(io.RawIOBase):
    """A stretch of an open file as a file of its own, which it closes with itself."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self.file, self.offset, self.size, self.position = file, offset, size, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.IOBase.seek`; positions start with the stretch."""
        self.position = max(0, offset + (0, self.position, self.size)[whence])
        return self.position

    def tell(self) -> int:
        """Position in the stretch."""
        return self.position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """See `io.RawIOBase.readinto`; ends with the stretch."""
        view = memoryview(buffer).cast("B")
        count = min(len(view), max(0, self.size - self.position))
        self.file.seek(self.offset + self.position)
        read = self.file.readinto(view[:count])  # type: ignore[attr-defined]
        self.position += read
        return int(read)

    def close(self) -> None:
        """Close the file too."""
        self.file.close()
        super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
