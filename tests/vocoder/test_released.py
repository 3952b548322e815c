"""Released weights, from files in their layout written here: what is heard is the same, and mismatches are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_aqaa.vocoder.cosyvoice.hift import HiftGenerator
from megatron_aqaa.vocoder.cosyvoice.hift_layers import fold_weight_norm
from megatron_aqaa.vocoder.released import load_released_flow, load_released_hift
from tests.vocoder.cosyvoice.tiny_flow import CONFIG as FLOW
from tests.vocoder.cosyvoice.tiny_flow import streams, tiny_flow
from tests.vocoder.cosyvoice.tiny_hift import CONFIG as HIFT
from tests.vocoder.cosyvoice.tiny_hift import tiny_hift

SPEAKER = replace(FLOW, speaker_size=12)


def written(folder: Path, tensors: dict) -> Path:
    path = folder / "weights.pt"
    torch.save(tensors, path)
    return path


def heard(model: HiftGenerator) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(1, 6, 80, generator=torch.Generator().manual_seed(2)) - 4).waveform


def scrambled(model: HiftGenerator) -> HiftGenerator:
    """Lengths that are not those of their directions, as after training."""
    for name, parameter in model.named_parameters():
        if name.endswith("original0"):
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    return model.eval()


def old_names(tensors: dict) -> dict:
    pairs = (("parametrizations.weight.original0", "weight_g"), ("parametrizations.weight.original1", "weight_v"))
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in pairs:
            name = name.replace(new, old)
        renamed[name] = tensor
    return renamed


def test_flow_round_trip(tmp_path: Path) -> None:
    model = tiny_flow(SPEAKER)
    path = written(tmp_path, model.state_dict() | {"epoch": 3, "step": 1000})  # as training saves it
    read = load_released_flow(path, SPEAKER)
    noise = torch.randn(1, 20, 16)
    expected = model.sample(streams(1, 10), noise, 2, speaker=torch.ones(1, 12))
    assert torch.equal(read.sample(streams(1, 10), noise, 2, speaker=torch.ones(1, 12)), expected)


def test_other_tokens_can_be_learned_on_released_weights(tmp_path: Path) -> None:
    path = written(tmp_path, tiny_flow().state_dict())
    wider = replace(FLOW, vocab_size=90)
    read = load_released_flow(path, wider, own=["input_embedding.weight"])
    assert read.input_embedding.weight.shape == (90, 16)
    assert torch.equal(read.encoder_proj.weight, tiny_flow().encoder_proj.weight)
    with pytest.raises(ValueError, match=r"input_embedding.weight \[50, 16\] where \[90, 16\] is needed"):
        load_released_flow(path, wider)
    with pytest.raises(ValueError, match="the network has no such tensor"):
        load_released_flow(path, wider, own=["input_embedding"])


@pytest.mark.parametrize("form", ["new", "old", "of a GAN"])
def test_hift_round_trip(tmp_path: Path, form: str) -> None:
    model = scrambled(tiny_hift())
    expected, tensors = heard(model), dict(model.state_dict())
    if form == "old":
        tensors = old_names(tensors)
        assert "conv_pre.weight_g" in tensors and "resblocks.0.convs1.0.weight_v" in tensors
    elif form == "of a GAN":
        tensors = {f"generator.{name}": t for name, t in tensors.items()} | {"discriminator.mpd.x": torch.ones(1)}
    read = load_released_hift(written(tmp_path, tensors), HIFT)
    assert torch.equal(heard(read), expected)


def test_hift_without_weight_norm_gets_it_back(tmp_path: Path) -> None:
    tensors = fold_weight_norm(scrambled(tiny_hift())).state_dict()
    assert "conv_pre.weight" in tensors and "resblocks.0.convs1.0.weight" in tensors
    read = load_released_hift(written(tmp_path, tensors), HIFT)
    assert any(name.endswith("original0") for name, _ in read.named_parameters())  # ready for more training
    torch.testing.assert_close(fold_weight_norm(read).state_dict(), tensors, rtol=1e-6, atol=1e-6)


def test_what_differs_is_named(tmp_path: Path) -> None:
    tensors = dict(tiny_hift().state_dict())
    del tensors["conv_post.bias"]
    tensors["conv_final.bias"] = torch.ones(1)
    tensors["m_source.l_linear.weight"] = torch.ones(1, 7)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_released_hift(written(tmp_path, tensors), HIFT)
    for part in (
        f"{tmp_path / 'weights.pt'}: not the HiftGenerator",
        "1 missing (conv_post.bias)",
        "1 unexpected (conv_final.bias)",
        "1 of another shape (m_source.l_linear.weight [1, 7] where [1, 9] is needed)",
    ):
        assert part in str(error.value)


def test_a_flow_is_no_hift_and_few_names_are_listed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing \(conv_post.bias, .* and \d+ more\); \d+ unexpected \(decoder"):
        load_released_hift(written(tmp_path, tiny_flow().state_dict()), HIFT)


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none.pt: no such file"):
        load_released_flow(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(ValueError, match="text.pt: damaged, or not written by torch.save"):
        load_released_flow(tmp_path / "text.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list; expected a state dictionary"):
        load_released_flow(tmp_path / "list.pt")
