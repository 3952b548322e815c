"""What became of the records of a chat data set: kept, set aside as bad, left out as too long."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from megatron_aqaa.data.chat_documents import same_text_targets
from megatron_aqaa.data.chat_records import BadRecord
from megatron_aqaa.data.counts import DocumentCounts
from megatron_aqaa.data.indexed import Document
from megatron_aqaa.vocabulary import Vocabulary


class ChatCounts:
    """Sums over the records of a data set.

    Attributes:
        rejects: bad records.
        left_out: records longer than `max_tokens`.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.documents = DocumentCounts(vocabulary)
        self.rejects: list[BadRecord] = []
        self.kept = self.left_out = self.unknown_tokens = self.pairs = self.pairs_of_same_text = 0

    def keep(self, documents: Sequence[Document]) -> None:
        """Count a record that is written: one document, or the two of a pair."""
        self.kept += 1
        for document in documents:
            self.documents.add(document)
            # pieces that the text model does not know share their id with padding, which no document holds
            self.unknown_tokens += int((document.token_ids == self.vocabulary.pad).sum())
        if len(documents) == 2:
            chosen, rejected = documents
            self.pairs += 1
            self.pairs_of_same_text += same_text_targets(chosen, rejected, self.vocabulary)

    def result(self) -> dict[str, Any]:
        """All counts by name; records = kept + rejected + left_out."""
        pairs = {"pairs": self.pairs, "pairs_of_same_text": self.pairs_of_same_text} if self.pairs else {}
        return {
            "records": self.kept + len(self.rejects) + self.left_out,
            "rejected": len(self.rejects),
            **pairs,
            **self.documents.result(),
            "left_out": self.left_out,
            "unknown_tokens": self.unknown_tokens,
            "rejects": Counter(bad.problem for bad in self.rejects),
        }

    def reject_lines(self) -> str:
        """The bad records as JSON Lines."""
        return "".join(json.dumps(asdict(bad), default=str) + "\n" for bad in self.rejects)
