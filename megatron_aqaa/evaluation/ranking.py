"""Does a model find the better half of a preference pair likelier? By the text alone, as in DPO with audio masked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron_aqaa.data.indexed import Document, Documents
from megatron_aqaa.model import AQAAModel
from megatron_aqaa.vocabulary import Vocabulary

_PAIRS_AT_A_TIME = 16


def ranked_first(model: AQAAModel, prefix: Path, vocabulary: Vocabulary) -> list[bool]:
    """For every pair of a preference data set: is log p(text of chosen) above log p(text of rejected)?

    Args:
        model: the whole model, in one process.
        prefix: documents 2i and 2i + 1 are the chosen and the rejected answer of pair i.
        vocabulary: id layout.

    Raises:
        ValueError: the data set is missing, damaged, or holds half a pair.
    """
    documents = Documents(prefix)
    if len(documents) % 2 or documents.mask is None:
        raise ValueError(f"{prefix}: {len(documents)} documents are no pairs; make it with tools/prepare_chat.py")
    outcomes: list[bool] = []
    for start in range(0, len(documents), 2 * _PAIRS_AT_A_TIME):
        halves = [documents[i] for i in range(start, min(start + 2 * _PAIRS_AT_A_TIME, len(documents)))]
        logps = text_logps(model, halves, vocabulary).view(-1, 2)
        outcomes += (logps[:, 0] > logps[:, 1]).tolist()
    return outcomes


@torch.inference_mode()
def text_logps(model: AQAAModel, documents: Sequence[Document], vocabulary: Vocabulary) -> Tensor:
    """Sum of the log-probabilities of a document's targets that are no audio codes (markers are text), [n] fp32."""
    shape = len(documents), max(len(document.token_ids) for document in documents)
    token_ids, document_ids, counts = torch.full(shape, vocabulary.pad), torch.full(shape, -1), torch.zeros(shape)
    for row, document in enumerate(documents):
        ids, mask = document.token_ids, document.loss_mask
        token_ids[row, : len(ids)] = torch.from_numpy(ids)
        document_ids[row, : len(ids)] = 0
        counts[row, : len(ids)] = torch.from_numpy(mask.astype(bool) & ~vocabulary.is_audio(ids))
    device = next(model.parameters()).device
    inputs = token_ids[:, :-1], document_ids[:, :-1], token_ids[:, 1:], counts[:, 1:]
    losses = model(*(tensor.contiguous().to(device) for tensor in inputs))
    return -losses.float().sum(-1).cpu()
