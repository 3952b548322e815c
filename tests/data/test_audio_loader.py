"""What every audio loader must do."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import soundfile
import torch

from megatron_aqaa.data.audio_loader import AudioBatch, AudioLoader, AudioLoaderConfig
from megatron_aqaa.data.audio_loading.batch_plan import Batching
from megatron_aqaa.data.audio_loading.effects import Effects
from megatron_aqaa.data.audio_loading.features import Features
from megatron_aqaa.data.audio_loading.records import AudioSource
from tests.data.audio_loaders import LOADERS, Open, assert_same, torch_loader
from tests.data.damaged_audio import write_damaged
from tests.data.recordings import write_manifest, write_mixed, write_tar

pytestmark = pytest.mark.filterwarnings("ignore:recordings at", "ignore:.*set aside so far")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 40 recordings of all formats."""
    directory = tmp_path_factory.mktemp("corpus")
    return write_manifest(directory / "manifest.jsonl", write_mixed(directory / "audio", 40))


def small_batches(manifest: Path, **changes: object) -> AudioLoaderConfig:
    config = AudioLoaderConfig(
        AudioSource(manifest, max_duration_s=5),
        Features("whisper"),
        Effects(trim_db=50, gain_db=(-6, 6), noise_db=(-90, -60)),
        Batching(max_batch_s=8, num_buckets=3),
        num_workers=1,
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def take(loader: AudioLoader, count: int) -> list[AudioBatch]:
    """The next batches, over the ends of epochs."""
    taken: list[AudioBatch] = []
    while len(taken) < count:
        taken += itertools.islice(loader, count - len(taken))
    return taken


@pytest.mark.parametrize("open_loader", LOADERS)
def test_a_resumed_run_gives_the_batches_of_one_that_was_never_stopped(open_loader: Open, corpus: Path) -> None:
    config = small_batches(corpus)
    per_epoch = len(open_loader(config))
    undisturbed = take(open_loader(config), 2 * per_epoch + 2)
    for stop in (0, 1, per_epoch - 1, per_epoch, per_epoch + 3):
        first = open_loader(config)
        take(first, stop)
        state = json.loads(json.dumps(first.state_dict()))
        second = open_loader(config)
        second.load_state_dict(state)
        for batch, expected in zip(take(second, 3), undisturbed[stop : stop + 3], strict=True):
            assert_same(batch, expected)


@pytest.mark.parametrize("open_loader", LOADERS)
def test_a_manifest_a_folder_and_tars_are_alike(open_loader: Open, tmp_path: Path) -> None:
    paths = write_mixed(tmp_path / "audio", 12)
    manifest = write_manifest(tmp_path / "audio" / "m.jsonl", (Path(path.name) for path in paths))
    for number in range(2):
        content = {path.name: path.read_bytes() for path in paths[6 * number : 6 * number + 6]}
        write_tar(tmp_path / f"{number}.tar", content)
    sources = (manifest, "manifest"), (tmp_path / "audio", "folder"), (tmp_path, "webdataset")
    batching = Batching(num_buckets=1, shuffle=False)
    configs = [small_batches(manifest, source=AudioSource(*source), batching=batching) for source in sources]  # type: ignore[arg-type]
    expected, *others = ([*open_loader(config)] for config in configs)
    assert [batch.ids for batch in expected] == [tuple(path.name for path in paths)]
    for (batch,) in others:
        assert_same(batch, expected[0])


@pytest.mark.parametrize("open_loader", LOADERS)
def test_epochs_are_complete_and_differ(open_loader: Open, corpus: Path) -> None:
    loader = open_loader(small_batches(corpus))
    first, second = list(loader), list(loader)
    for epoch in (first, second):
        assert sorted(i for batch in epoch for i in batch.ids) == sorted(r.id for r in loader.records)
    assert [batch.ids for batch in first] != [batch.ids for batch in second]
    found = {i: b.features[n, :10] for b in first for n, i in enumerate(b.ids)}
    again = {i: b.features[n, :10] for b in second for n, i in enumerate(b.ids)}
    assert all(not torch.equal(found[i], again[i]) for i in found)  # gain and noise are drawn anew


@pytest.mark.parametrize("open_loader", LOADERS)
def test_ranks_share_the_recordings_out(open_loader: Open, corpus: Path) -> None:
    ranks = [open_loader(small_batches(corpus, rank=rank, world_size=3)) for rank in range(3)]
    for _ in range(2):
        batches = [list(loader) for loader in ranks]
        assert len({len(b) for b in batches}) == 1
        ids = [i for of_rank in batches for batch in of_rank for i in batch.ids]
        assert sorted(ids) == sorted(r.id for r in ranks[0].records)


@pytest.mark.parametrize("open_loader", LOADERS)
def test_padding_is_zero_and_lengths_are_told(open_loader: Open, corpus: Path) -> None:
    for kind in ("waveform", "log_mel", "kaldi"):
        for batch in open_loader(small_batches(corpus, features=Features(kind))):  # type: ignore[arg-type]
            assert batch.features.dtype == torch.float32 and batch.lengths.dtype == torch.int64
            assert batch.features.shape[:2] == (len(batch.ids), batch.lengths.max())
            for values, length in zip(batch.features, batch.lengths, strict=True):
                assert values[:length].any() and not values[length:].any()


@pytest.mark.parametrize("kind", ["waveform", "whisper"])
@pytest.mark.parametrize("open_loader", LOADERS)
def test_a_network_can_be_trained_on_them(open_loader: Open, corpus: Path, kind: str) -> None:
    batch = next(iter(open_loader(small_batches(corpus, features=Features(kind)))))  # type: ignore[arg-type]
    network = torch.nn.Linear(batch.features.shape[-1], 2)
    network(batch.features).sum().backward()
    assert network.weight.grad is not None and network.weight.grad.any()


@pytest.mark.parametrize("open_loader", LOADERS)
def test_damaged_recordings_are_named_and_their_neighbours_kept(open_loader: Open, tmp_path: Path) -> None:
    bad = list(write_damaged(tmp_path, 200))
    good = write_mixed(tmp_path / "good", 60)
    everything = [path for pair in itertools.zip_longest(bad, good) for path in pair if path]
    # promised durations, so that damage is found when the recordings are read
    seconds = {path: soundfile.info(path).duration for path in good}
    lines = ({"audio": str(path), "duration_s": seconds.get(path, 1.0)} for path in everything)
    manifest = tmp_path / "manifest.jsonl"
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    manifest.write_bytes(text.encode("utf-8", "surrogateescape"))
    mixed = open_loader(small_batches(manifest, effects=Effects()))
    alone = open_loader(small_batches(write_manifest(tmp_path / "good.jsonl", good), effects=Effects()))

    found = {i: b.features[n, : b.lengths[n]] for b in mixed for n, i in enumerate(b.ids)}
    expected = {i: b.features[n, : b.lengths[n]] for b in alone for n, i in enumerate(b.ids)}
    assert set(found) == set(expected) == {str(path) for path in good}
    for name, features in expected.items():
        torch.testing.assert_close(found[name], features, rtol=0, atol=2e-5)
    assert set(mixed.rejects) == {str(path) for path in bad}
    assert all(audio in reason and len(reason) > len(audio) + 10 for audio, reason in mixed.rejects.items())

    mixed.write_rejects(tmp_path / "rejects.jsonl")
    records = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert {record["audio"]: record["reason"] for record in records} == mixed.rejects
    resumed = open_loader(small_batches(manifest, effects=Effects()))
    resumed.load_state_dict(mixed.state_dict())
    assert resumed.rejects == mixed.rejects


@pytest.mark.parametrize("open_loader", LOADERS)
def test_a_batch_of_nothing_but_damage_is_left_out(open_loader: Open, tmp_path: Path) -> None:
    good = write_mixed(tmp_path / "good", 3)
    (tmp_path / "bad.wav").write_text("no recording")
    paths = [good[0], tmp_path / "bad.wav", good[1], good[2]]
    lines = ({"audio": str(p), "duration_s": soundfile.info(p).duration if p in good else 1.0} for p in paths)
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    batching = Batching(5, max_batch_size=1, num_buckets=1, shuffle=False)
    loader = open_loader(small_batches(tmp_path / "m.jsonl", batching=batching))
    with pytest.warns(UserWarning, match=r"1 recording.s. set aside so far, the last: .*bad.wav: not readable"):
        batches = list(loader)
    assert [batch.ids for batch in batches] == [(str(path),) for path in good]
    assert len(loader) == 4 and loader.epoch == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": Features("kaldi")}, "features .*'whisper'.* → .*'kaldi'"),
        ({"world_size": 2}, "world_size 1 → 2"),
        ({"effects": Effects(trim_db=30)}, "effects .*50.* → .*30"),
        ({"source": AudioSource(Path("m.jsonl"), max_duration_s=1)}, "recordings 40, .* → "),
    ],
)
def test_a_state_of_other_settings_is_refused(corpus: Path, changes: dict[str, object], message: str) -> None:
    state = torch_loader(small_batches(corpus)).state_dict()
    if "source" in changes:
        changes = {"source": AudioSource(corpus, max_duration_s=1)}
    with pytest.raises(ValueError, match=message):
        torch_loader(small_batches(corpus, **changes)).load_state_dict(state)


def test_a_state_of_another_resampler_is_refused(corpus: Path) -> None:
    loader = torch_loader(small_batches(corpus))
    with pytest.raises(ValueError, match="made with the resampler 'other 2', but here recordings pass through 'soxr"):
        loader.load_state_dict({**loader.state_dict(), "resampler": "other 2"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank 2 must lie in 0 … 1"),
        ({"num_workers": -1}, "num_workers -1"),
        ({"sample_rate_hz": 8000}, "sample_rate_hz 8000, but whisper is computed at 16000 Hz"),
        ({"batching": Batching(max_batch_s=4)}, "source.max_duration_s 5 is more than batching.max_batch_s 4"),
    ],
)
def test_settings_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_batches(Path("m.jsonl"), **changes)
