"""What was set aside while loading: name of the recording → reason."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

from megatron_aqaa.data.audio_loading.records import Reject
from megatron_aqaa.whole_file import write_whole


class Rejects(dict[str, str]):
    """Recordings by name with the reason; the first reason stays."""

    def note(self, rejects: Sequence[Reject]) -> None:
        """Add some; warns at the first, second, fourth … in all: no flood when a disk is gone."""
        before = len(self)
        for audio, reason in rejects:
            self.setdefault(audio, reason)
        if len(self).bit_length() > before.bit_length():
            warnings.warn(f"{len(self)} recording(s) set aside so far, the last: {rejects[-1].reason}", stacklevel=3)

    def write(self, path: str | Path) -> None:
        """Write all as JSON Lines `{"audio", "reason"}`."""
        lines = (json.dumps({"audio": audio, "reason": reason}) + "\n" for audio, reason in self.items())
        write_whole(Path(path), "".join(lines))

    @classmethod
    def read(cls, path: str | Path) -> Rejects:
        """Those of a file that `write` wrote; none if there is no file."""
        if not Path(path).exists():
            return cls()
        lines = map(json.loads, Path(path).read_text().splitlines())
        return cls({line["audio"]: line["reason"] for line in lines})
