"""What a data set holds, in numbers."""

from __future__ import annotations

from megatron_aqaa.data.indexed import Document
from megatron_aqaa.vocabulary import GROUP_DURATION_S, GROUP_SIZE, Vocabulary


class DocumentCounts:
    """Sums over the documents of a data set.

    Attributes:
        left_out: Documents that were too long; counted by whoever leaves them out.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.lengths: list[int] = []
        self.audio_tokens = self.segments = self.targets = self.audio_targets = self.left_out = 0

    def add(self, document: Document) -> None:
        """Count one document."""
        self.lengths.append(len(document.token_ids))
        is_audio, is_target = self.vocabulary.is_audio(document.token_ids), document.loss_mask[1:] > 0
        self.audio_tokens += int(is_audio.sum())
        self.segments += int((document.token_ids == self.vocabulary.audio_start).sum())
        self.targets += int(is_target.sum())
        self.audio_targets += int((is_target & is_audio[1:]).sum())

    def result(self) -> dict[str, float]:
        """All counts by name.

        `targets` are tokens with loss, `segments` stretches of speech between their markers; `audio_hours` follow from
        the groups.
        """
        tokens = sum(self.lengths)
        return {
            "documents": len(self.lengths),
            "left_out": self.left_out,
            "tokens": tokens,
            "text_tokens": tokens - self.audio_tokens,
            "audio_tokens": self.audio_tokens,
            "audio_hours": round(self.audio_tokens / GROUP_SIZE * GROUP_DURATION_S / 3600, 3),
            "segments": self.segments,
            "targets": self.targets,
            "audio_targets": self.audio_targets,
            "mean_tokens": round(tokens / max(1, len(self.lengths)), 1),
            "longest": max(self.lengths, default=0),
        }
