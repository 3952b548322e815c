"""What the loss of a micro-batch brings back: sums by modality, in one pass and without asking the device."""

from __future__ import annotations

import torch

from megatron_aqaa.training.lm_step import _loss
from megatron_aqaa.vocabulary import MODALITY_NAMES, Vocabulary

VOCABULARY = Vocabulary.for_text(3000)


def micro_batch() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Token losses [2, 40], and a batch with weights 0, 1 and 3."""
    random = torch.Generator().manual_seed(0)
    token_ids = torch.randint(0, VOCABULARY.size, (2, 40), generator=random)
    batch = {
        "token_ids": token_ids,
        "labels": torch.randint(0, VOCABULARY.size, (2, 40), generator=random),
        "loss_mask": torch.randint(0, 3, (2, 40), generator=random).float() * 1.5 // 1,
    }
    return torch.rand(2, 40, generator=random), batch


def test_sums_are_those_of_a_loop_over_positions() -> None:
    losses, batch = micro_batch()
    weighted = weight = audio = 0.0
    sums, counts = [0.0] * len(MODALITY_NAMES), [0] * len(MODALITY_NAMES)
    for loss, token_id, label, w in zip(
        *(t.flatten().tolist() for t in (losses, batch["token_ids"], batch["labels"], batch["loss_mask"])), strict=True
    ):
        weighted, weight, audio = weighted + w * loss, weight + w, audio + VOCABULARY.is_audio(token_id)
        if w > 0:
            sums[VOCABULARY.modality(label)] += loss
            counts[VOCABULARY.modality(label)] += 1
    assert min(counts) > 0 and sum(counts) < 80
    total, divisor, logged = _loss(VOCABULARY)(losses, batch)
    torch.testing.assert_close(total.item(), weighted, rtol=1e-6, atol=0.0)
    assert divisor.dtype == torch.int32 and divisor.item() == weight
    torch.testing.assert_close(logged, torch.tensor([weighted, weight, audio, *sums, *counts]), rtol=1e-6, atol=0.0)


def test_a_loss_that_is_no_number_spoils_its_own_modality_alone() -> None:
    losses, batch = micro_batch()
    batch["loss_mask"][0, 0], batch["labels"][0, 0] = 1.0, VOCABULARY.semantic_start
    losses[0, 0] = torch.nan
    *_, logged = _loss(VOCABULARY)(losses, batch)
    assert logged[3:6].isnan().tolist() == [False, False, True]


def test_no_size_depends_on_values() -> None:
    """On a GPU the host would wait for such a size, in every micro-batch; meta tensors have no values to ask for."""
    losses, batch = micro_batch()
    *_, logged = _loss(VOCABULARY)(losses.to("meta"), {name: value.to("meta") for name, value in batch.items()})
    assert logged.is_meta and logged.shape == (9,)
