"""Kinds of reasons for which recordings are set aside, so that they can be counted."""

from __future__ import annotations

OTHER = "other"

_WORDS = (  # the first that a reason holds decides
    ("not readable as an uncompressed tar", "damaged tar"),
    ("damaged or cut off behind", "damaged tar"),
    ("holds no samples, such as", "tar without samples"),
    ("must have one recording", "sample without one recording"),
    ("a second sample of the key", "duplicate key"),
    ("is there twice", "duplicate key"),
    ("is not JSON", "damaged words"),
    ("expected a JSON object", "damaged words"),
    ("is not UTF-8 text", "damaged words"),
    ("is a link or no plain file", "not a file"),
    ("no such file", "missing"),
    ("is a folder", "not a file"),
    ("is not a regular file", "not a file"),
    ("cannot be opened", "not a file"),
    ("is empty (0 bytes)", "empty"),
    ("holds no samples", "empty"),
    ("leave nothing at", "empty"),
    ("truncated", "truncated"),
    ("not readable as wav", "unreadable"),
    ("NaN or infinite", "NaN or infinite"),
    ("speech needs at least", "too short"),
    ("h are taken: cut it", "too long"),
    ("has no text", "no text"),
)


def kind_of(audio: str, reason: str) -> str:
    """The kind of a reason.

    Args:
        audio: name of the recording, which the reason begins with.
        reason: why it was set aside.
    """
    told = reason.removeprefix(audio)
    return next((kind for words, kind in _WORDS if words in told), OTHER)
