"""The full-size vocoder as a whole, at a tiny size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_aqaa.network_file import save_network
from megatron_aqaa.vocoder.cosyvoice.flow_model import WIDE_MEL, TokenBatch
from megatron_aqaa.vocoder.cosyvoice.flow_sampling import FlowSampling
from megatron_aqaa.vocoder.cosyvoice.full_size_vocoder import FullSizeVocoder
from megatron_aqaa.vocoder.cosyvoice.spoken_tokens import SpokenTokens
from megatron_aqaa.vocoder.cosyvoice.token_ids import flow_tokens
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


def voice_of(speaker: FullSizeVocoder, groups: int = 4) -> SpokenTokens:
    """A prompt of noise, with ids that nobody spoke."""
    waveform = torch.randn(round(groups * 0.12 * 22050), generator=torch.Generator().manual_seed(3)) * 0.1
    return speaker.prompt(waveform, random_ids(groups, seed=9))


@pytest.mark.parametrize("form", ["flat", "columns"])
def test_a_voice_prompt_is_heard_by_the_flow_model_and_not_spoken(form: str) -> None:
    speaker = vocoder(token_form=form, chunk_tokens=(15,))
    ids, prompt, model = random_ids(3), voice_of(speaker), speaker.flow_model
    whole = flow_tokens([*random_ids(4, seed=9), *ids], VOCABULARY, form)
    frames, before = model.config.num_frames(len(whole)), len(prompt.mel)
    assert before == model.config.num_frames(len(prompt.tokens))
    noise = torch.randn(1, frames, 80, generator=torch.Generator().manual_seed(5))
    told = torch.cat((prompt.mel, torch.zeros(frames - before, 80)))[None]
    mel = model.sample(TokenBatch(whole[None]), noise, 2, prompt=told)
    assert torch.equal(speaker._mel(ids.tolist(), 5, prompt), mel[:, before:])

    spoken = speaker.synthesize(ids, 5, prompt=prompt)
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(5)
        alone = speaker.generator(mel[:, before:]).waveform[0]
    left_over = round(4 * 0.12 * 22050) - before * 256  # the prompt's last samples, which fill no two frames
    assert 0 <= left_over < 512 and spoken.shape == (round(3 * 0.12 * 22050),)
    heard = alone[left_over:][: len(spoken)]
    assert torch.equal(spoken[: len(heard)], heard) and not spoken[len(heard) :].any()
    assert not torch.equal(spoken, speaker.synthesize(ids, 5))


def test_a_voice_prompt_that_does_not_fit() -> None:
    speaker = vocoder()
    with pytest.raises(ValueError, match="2.00 s, but its 10 tokens last 0.24 s"):
        speaker.prompt(torch.zeros(44100), random_ids(2))
    with pytest.raises(ValueError, match="needs one group of tokens or more"):
        speaker.prompt(torch.zeros(100), [])
    prompt = voice_of(speaker)
    with pytest.raises(ValueError, match=r"20 tokens and mel \[39, 80\]; needed are whole groups and mel \[40, 80\]"):
        speaker.synthesize(random_ids(2), prompt=replace(prompt, mel=prompt.mel[1:]))
    deaf = vocoder(voice_prompt=False)
    with pytest.raises(ValueError, match="trained without voice prompts"):
        voice_of(deaf)
    with pytest.raises(ValueError, match="takes no voice prompt"):
        deaf.synthesize(random_ids(2), prompt=prompt)


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
