"""The full-size vocoder as a whole, at a tiny size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_aqaa.network_file import save_network
from megatron_aqaa.vocoder.cosyvoice.flow_model import WIDE_MEL
from megatron_aqaa.vocoder.cosyvoice.flow_sampling import FlowSampling
from megatron_aqaa.vocoder.cosyvoice.full_size_vocoder import FullSizeVocoder
from tests.vocoder.cosyvoice.tiny_flow import CONFIG, MEL, tiny_flow
from tests.vocoder.cosyvoice.tiny_hift import tiny_hift
from tests.vocoder.tiny_vocoder import VOCABULARY, random_ids

FLOW = replace(CONFIG, vocab_size=5120, mel=WIDE_MEL)
SAMPLING = FlowSampling(steps=2)


def vocoder(sampling: FlowSampling = SAMPLING, **settings: object) -> FullSizeVocoder:
    return FullSizeVocoder(tiny_flow(replace(FLOW, **settings)), tiny_hift(), VOCABULARY, sampling)


@pytest.mark.parametrize("form", ["flat", "columns"])
def test_a_group_lasts_120_ms(form: str) -> None:
    waveform = vocoder(token_form=form, chunk_tokens=(15,)).synthesize(random_ids(7))
    assert waveform.shape == (round(7 * 0.12 * 22050),)
    assert torch.isfinite(waveform).all() and waveform[:-600].any()


def test_ids_and_seed_decide_the_waveform() -> None:
    speaker, ids = vocoder(), random_ids(3)
    state = torch.get_rng_state()
    first = speaker.synthesize(ids, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(speaker.synthesize(ids, seed=1), first)
    assert not torch.equal(speaker.synthesize(ids, seed=2), first)
    assert not torch.equal(speaker.synthesize(random_ids(3, seed=1), seed=1), first)


def test_bf16_sounds_alike() -> None:
    ids = random_ids(3)
    mels = [vocoder(replace(SAMPLING, bf16=bf16))._mel(ids.tolist(), 0) for bf16 in (False, True)]
    assert mels[1].dtype == torch.float32
    assert float((mels[1] - mels[0]).norm() / mels[0].norm()) < 0.02


def test_faults_are_repaired_and_reported_or_refused() -> None:
    faults: list = []
    broken = [*random_ids(2).tolist(), 3, *random_ids(1).tolist()]
    assert len(vocoder().synthesize(broken, on_fault=faults.append)) == round(3 * 0.12 * 22050)
    assert len(faults) == 1
    with pytest.raises(ValueError, match="position 10"):
        vocoder().synthesize(broken)
    assert vocoder().synthesize([]).shape == (0,)


def test_round_trip(tmp_path: Path) -> None:
    save_network(tiny_flow(FLOW), tmp_path / "flow" / "model.pt")
    save_network(tiny_hift(), tmp_path / "hift" / "model.pt")
    VOCABULARY.save(tmp_path / "flow" / "vocabulary.yaml")
    loaded = FullSizeVocoder.load(tmp_path, SAMPLING)
    assert torch.equal(loaded.synthesize(random_ids(2)), vocoder().synthesize(random_ids(2)))
    with pytest.raises(ValueError, match="no such file; tools/train_vocoder.py makes it"):
        FullSizeVocoder.load(tmp_path / "flow")


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="the flow model makes .*num_mels=16.* the generator speaks from"):
        FullSizeVocoder(tiny_flow(replace(FLOW, mel=MEL)), tiny_hift(), VOCABULARY)
    with pytest.raises(ValueError, match="for 50 codes does not fit the vocabulary's 1024 and 4096"):
        FullSizeVocoder(tiny_flow(replace(FLOW, vocab_size=50)), tiny_hift(), VOCABULARY)
