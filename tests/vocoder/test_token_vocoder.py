"""Tokens in, speech out: exact length, determinism, and errors that name the place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_aqaa.network_file import save_network
from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.vocoder.acoustic import SamplingConfig
from megatron_aqaa.vocoder.token_vocoder import TokenVocoder
from tests.vocoder.tiny_vocoder import VOCABULARY, random_ids, tiny_acoustic, tiny_generator, tiny_vocoder


@pytest.mark.parametrize("groups", [0, 1, 9])
def test_a_group_lasts_120_ms(groups):
    spoken = tiny_vocoder().synthesize(random_ids(groups))
    assert spoken.shape == (groups * 1920,) and spoken.dtype == torch.float32
    assert torch.isfinite(spoken).all()


def test_the_seed_decides():
    vocoder, ids = tiny_vocoder(), random_ids(4)
    assert torch.equal(vocoder.synthesize(ids, seed=3), vocoder.synthesize(ids, seed=3))
    assert not torch.allclose(vocoder.synthesize(ids, seed=3), vocoder.synthesize(ids, seed=4), atol=1e-4)


def test_leaves_the_callers_randomness_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tiny_vocoder_after_seed = tiny_vocoder()  # seeds itself
    torch.manual_seed(5)
    tiny_vocoder_after_seed.synthesize(random_ids(2))
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("position", "token_id", "message"),
    [
        (7, VOCABULARY.linguistic_start, "7"),
        (10, VOCABULARY.semantic_start, "10"),
        (1, 3, "1"),
        (14, VOCABULARY.audio_start, "14"),
    ],
)
def test_a_stray_token_is_named(position, token_id, message):
    ids = random_ids(3)
    ids[position] = token_id
    with pytest.raises(ValueError, match=rf"\b{message}\b"):
        tiny_vocoder().synthesize(ids)


def test_an_incomplete_group_is_an_error():
    with pytest.raises(ValueError, match="multiple of 5|whole groups"):
        tiny_vocoder().synthesize(random_ids(3)[:-1])


def test_noise_belongs_to_the_place_of_a_group():
    vocoder = tiny_vocoder()
    assert torch.equal(vocoder.breath(range(2, 5), 0), vocoder.breath(range(0, 8), 0)[:, 2 * 1920 : 5 * 1920])
    codes = vocoder.codes(random_ids(1))
    one, other = (vocoder.frames(codes, 0, first_group=g).mel for g in (0, 1))
    assert not torch.allclose(one, other, atol=1e-4)


def test_reads_what_was_saved(tmp_path):
    save_network(tiny_acoustic(), tmp_path / "acoustic" / "model.pt")
    save_network(tiny_generator(), tmp_path / "generator" / "model.pt")
    VOCABULARY.save(tmp_path / "acoustic" / "vocabulary.yaml")
    ids = random_ids(3)
    sampling = SamplingConfig(steps=2)
    loaded = TokenVocoder.load(tmp_path, sampling)
    assert torch.equal(loaded.synthesize(ids), tiny_vocoder(sampling).synthesize(ids))
    assert loaded.sample_rate_hz == 16000


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="acoustic/model.pt: no such file; tools/train_vocoder.py makes it"):
        TokenVocoder.load(tmp_path)
    save_network(tiny_generator(), tmp_path / "acoustic" / "model.pt")
    with pytest.raises(ValueError, match="acoustic/model.pt"):
        TokenVocoder.load(tmp_path)
    (tmp_path / "acoustic" / "model.pt").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="acoustic/model.pt: not a AcousticModel"):
        TokenVocoder.load(tmp_path)


def test_codebooks_must_fit():
    with pytest.raises(ValueError, match="codebooks of 1024 and 4096 does not fit the vocabulary's 8 and 4096"):
        TokenVocoder(tiny_acoustic(), tiny_generator(), Vocabulary(text_size=20, linguistic_size=8, audio_start=70000))


def test_accepts_lists_and_arrays():
    vocoder, ids = tiny_vocoder(), random_ids(2)
    assert torch.equal(vocoder.synthesize(ids.tolist()), vocoder.synthesize(np.asarray(ids)))
