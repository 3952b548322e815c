"""The released linguistic tokenizer on files of its layout."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_aqaa.audio.kaldi_fbank import num_frames
from megatron_aqaa.tokenizer.released.linguistic import ReleasedLinguistic, stack_frames
from megatron_aqaa.tokenizer.released.tokenizer import CENTROIDS
from tests.tokenizer.released.files import FOLDER, write_encoder_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder_files(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def tokenizer(files: Path) -> ReleasedLinguistic:
    return ReleasedLinguistic.load(files / FOLDER, files / CENTROIDS)


def noise(num_samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7, 12, 13, 25])
def test_stacking_by_the_definition(count: int) -> None:
    fbank = torch.arange(float(count * 2)).view(count, 2)
    rows = []
    for middle in range(0, count, 6):
        rows.append(torch.cat([fbank[min(max(middle + j, 0), count - 1)] for j in range(-3, 4)]))
    assert torch.equal(stack_frames(fbank), torch.stack(rows))


@pytest.mark.parametrize("num_samples", [400, 3839, 3840, 4243, 4244, 7680, 16000, 50001])
def test_equals_funasr_frontend(files: Path, tokenizer: ReleasedLinguistic, num_samples: int) -> None:
    frontends = pytest.importorskip("funasr.frontends.wav_frontend")
    frontend = frontends.WavFrontendOnline(str(files / FOLDER / "am.mvn"), lfr_m=7, lfr_n=6, dither=0.0)
    cache: dict[str, object] = {}
    frontend.init_cache(cache)
    waveform, parts = noise(num_samples), []
    for start in range(0, num_samples, 3840):
        piece = waveform[None, start : start + 3840]
        final = start + 3840 >= num_samples
        parts.append(frontend(piece, [piece.shape[1]], is_final=final, cache=cache)[0][0])
    torch.testing.assert_close(tokenizer.frames(waveform), torch.cat(parts), rtol=0, atol=1e-3)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 24_000), st.lists(st.integers(0, 24_000), max_size=12))
@example(399, [])
@example(12_000, [*range(0, 12_000, 97)])
@example(3840 * 3, [3840, 3840 * 2])
def test_a_stream_gives_the_codes_of_the_whole(tokenizer: ReleasedLinguistic, length: int, cuts: list[int]) -> None:
    waveform, stream = noise(length), tokenizer.stream()
    borders = [0, *sorted(min(cut, length) for cut in cuts)]
    parts = [stream.feed(waveform[start:stop]) for start, stop in pairwise(borders)]
    parts.append(stream.feed(waveform[borders[-1] :], final=True))
    whole = tokenizer.codes([waveform])[0]
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole) == -(-num_frames(length) // 6)


def test_a_stream_refuses_what_is_no_sound_and_goes_on(tokenizer: ReleasedLinguistic) -> None:
    stream, waveform = tokenizer.stream(), noise(9000)
    first = stream.feed(waveform[:5000])
    with pytest.raises(ValueError, match="NaN or infinite"):
        stream.feed(torch.full((100,), torch.nan))
    rest = stream.feed(waveform[5000:], final=True)
    assert torch.equal(torch.cat((first, rest)), tokenizer.codes([waveform])[0])


def test_a_stream_speaks_as_soon_as_it_can(tokenizer: ReleasedLinguistic) -> None:
    stream = tokenizer.stream()
    assert [len(stream.feed(noise(3840, seed))) for seed in range(5)] == [4] * 5


def test_a_batch_gives_what_each_gives_alone(tokenizer: ReleasedLinguistic) -> None:
    waveforms = [noise(n, n) for n in (399, 400, 9000, 31_000)]
    for waveform, codes in zip(waveforms, tokenizer.codes(waveforms), strict=True):
        assert torch.equal(codes, tokenizer.codes([waveform])[0])


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("config.yaml", lambda path: path.unlink(), "config.yaml: no such file"),
        ("config.yaml", lambda path: path.write_text("a: 1"), "no encoder_conf"),
        ("config.yaml", lambda path: edit(path, "encoder_conf", "sanm_shfit", 5), "encoder_conf.sanm_shfit is 5"),
        ("config.yaml", lambda path: edit(path, "frontend_conf", "lfr_n", 4), "stacked 7/4"),
        ("config.yaml", lambda path: edit(path, "encoder_conf", "num_blocks", 2), "does not fit config.yaml"),
        ("model.pt", lambda path: path.write_bytes(b"no"), "model.pt: not readable as weights"),
        ("config.yaml", lambda path: path.write_text("a: [1"), "config.yaml: not readable as YAML"),
        ("model.pt", lambda path: torch.save([1], path), "model.pt: not readable as weights"),
        ("am.mvn", lambda path: path.write_text("<Nnet>"), "no <AddShift> layer"),
        ("am.mvn", lambda path: path.write_text("<AddShift> [ one ]"), "am.mvn: a value of <AddShift>"),
        ("am.mvn", lambda path: path.write_text("<AddShift> [ 1 2 ]\n<Rescale> [ 1 ]"), "2 shifts and 1 scales"),
    ],
)
def test_bad_files_are_named(files: Path, tmp_path: Path, name: str, change: object, what: str) -> None:
    shutil.copytree(files, tmp_path / "copy")
    change(tmp_path / "copy" / FOLDER / name)  # type: ignore[operator]
    with pytest.raises(ValueError, match=what):
        ReleasedLinguistic.load(tmp_path / "copy" / FOLDER, files / CENTROIDS)


def edit(path: Path, section: str, key: str, value: int) -> None:
    content = yaml.safe_load(path.read_text())
    content[section][key] = value
    path.write_text(yaml.safe_dump(content))


def test_centroids_of_another_width(tokenizer: ReleasedLinguistic) -> None:
    with pytest.raises(ValueError, match="centroids of 31 values do not fit an encoder of 32"):
        ReleasedLinguistic(tokenizer.encoder, tokenizer.normalization, torch.zeros(1024, 31))
