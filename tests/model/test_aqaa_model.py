"""Loss on chosen positions, logits of real rows, and that nothing depends on how backward keeps its tensors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from megatron_aqaa.model import AQAAModel, ModelConfig, build_model
from megatron_aqaa.vocabulary import Vocabulary
from tests.model.sizes import TINY, VOCABULARY, variant


def batch() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(11)
    ids = torch.randint(0, VOCABULARY.size, (3, 17), generator=random)
    documents = torch.tensor([[0] * 16, [0] * 7 + [1] * 9, [0] * 5 + [1] * 5 + [-1] * 6])
    loss_mask = torch.randint(0, 3, (3, 16), generator=random).float()
    return {"token_ids": ids[:, :-1], "labels": ids[:, 1:], "document_ids": documents, "loss_mask": loss_mask}


def gradients(model: AQAAModel, losses: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    losses.sum().backward()  # Megatron's checkpointing refuses `autograd.grad`
    return [parameter.grad for parameter in model.parameters()]


def test_losses_are_cross_entropies_of_the_logits(one_process: None) -> None:
    model, data = build_model(TINY, VOCABULARY)[0], batch()
    losses = model(**data)
    logits = model(data["token_ids"], data["document_ids"])
    assert logits.shape == (3, 16, VOCABULARY.size)
    expected = F.cross_entropy(logits.transpose(1, 2), data["labels"], reduction="none") * (data["loss_mask"] > 0)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(gradients(model, losses), gradients(model, expected), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("untied", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_recomputing_logits_changes_nothing(one_process: None, untied: bool, masked: bool) -> None:
    data = batch()
    if not masked:
        del data["loss_mask"]
    plain, recomputing = (
        build_model(variant(recompute_logits=value, untie_embeddings_and_output_weights=untied), VOCABULARY)[0]
        for value in (False, True)
    )
    recomputing.load_state_dict(plain.state_dict())
    losses, again = plain(**data), recomputing(**data)
    torch.testing.assert_close(again, losses)
    torch.testing.assert_close(gradients(recomputing, again), gradients(plain, losses), atol=1e-6, rtol=1e-5)


def test_a_label_outside_the_vocabulary_is_named(one_process: None) -> None:
    data = batch()
    data["labels"] = torch.full_like(data["labels"], VOCABULARY.size)  # the tables have padded rows beyond it
    for recompute_logits in (False, True):
        model = build_model(variant(recompute_logits=recompute_logits), VOCABULARY)[0]
        with pytest.raises(ValueError, match=f"label {VOCABULARY.size} .* not among the ids of the softmax"):
            model(**data)


def test_without_a_mask_every_position_counts(one_process: None) -> None:
    model, data = build_model(TINY, VOCABULARY)[0], batch()
    del data["loss_mask"]
    torch.testing.assert_close(model(**data), model(**data, loss_mask=torch.ones(3, 16)))
    assert (model(**data) > 0).all()


@pytest.mark.parametrize("recompute_logits", [False, True])
def test_no_position_with_loss(one_process: None, recompute_logits: bool) -> None:
    model, data = build_model(variant(recompute_logits=recompute_logits), VOCABULARY)[0], batch()
    data["loss_mask"].zero_()
    data["labels"] = torch.full_like(data["labels"], -100)  # labels without loss may be anything
    losses = model(**data)
    assert losses.abs().sum() == 0
    assert all((gradient == 0).all() for gradient in gradients(model, losses))


def test_a_document_does_not_see_its_neighbour(one_process: None) -> None:
    model, data = build_model(TINY, VOCABULARY)[0], batch()
    row = data["token_ids"][1:2]
    alone = model(row[:, 7:])
    torch.testing.assert_close(model(row, data["document_ids"][1:2])[:, 7:], alone)


@pytest.mark.parametrize("recompute", ["attention", "mlp", "full"])
def test_recomputation_changes_nothing(one_process: None, recompute: str) -> None:
    data = batch()
    plain = build_model(TINY, VOCABULARY)[0]
    recomputing = build_model(variant(recompute=recompute), VOCABULARY)[0]
    recomputing.load_state_dict(plain.state_dict())
    losses, again = plain(**data), recomputing(**data)
    torch.testing.assert_close(again, losses)
    torch.testing.assert_close(gradients(recomputing, again), gradients(plain, losses))


def test_training_goes_on_after_inference_mode(one_process: None) -> None:
    model, data = build_model(TINY, VOCABULARY)[0], batch()
    before = model(**data)
    with torch.inference_mode():
        model.eval()(**data)
    after = build_model(TINY, VOCABULARY)[0]
    after.load_state_dict(model.state_dict())
    losses = model.train()(**data)
    torch.testing.assert_close(losses, before)
    losses.sum().backward()


def test_the_slope_scale_is_a_setting(one_process: None) -> None:
    data = batch()
    published, steeper = (build_model(variant(alibi_slope_scale=scale), VOCABULARY)[0] for scale in (1.0, 2.0))
    steeper.load_state_dict(published.state_dict())
    assert (published(**data) - steeper(**data)).abs().max() > 1e-4


def parameter_count(model: ModelConfig, vocab_size: int) -> int:
    head = model.kv_channels or model.hidden_size // model.num_attention_heads
    attention = model.hidden_size * head * 2 * (model.num_attention_heads + model.num_query_groups)
    layer = attention + 3 * model.hidden_size * model.ffn_hidden_size + 2 * model.hidden_size
    return model.num_layers * layer + model.hidden_size + 2 * vocab_size * model.hidden_size


def test_parameter_counts_are_the_published_ones(one_process: None) -> None:
    model = build_model(TINY, VOCABULARY)[0]
    assert sum(p.numel() for p in model.parameters()) == parameter_count(TINY, VOCABULARY.padded_size(128))
    released = Vocabulary().padded_size(128)
    assert parameter_count(ModelConfig(32, 3072, 8192, 48, 4), released) == 3_529_706_496
    assert parameter_count(ModelConfig(88, 12288, 31232, 96, 8), released) == 131_946_590_208


def test_initial_weights_follow_the_seed_and_the_spread(one_process: None) -> None:
    wide = dataclasses.replace(TINY, init_method_std=0.5)
    model = build_model(wide, VOCABULARY)[0]
    assert model.embedding.word_embeddings.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert model.output_layer.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert model.decoder.layers[0].mlp.linear_fc2.weight.std().item() == pytest.approx(0.25, rel=0.1)  # 0.5 / √(2·2)
