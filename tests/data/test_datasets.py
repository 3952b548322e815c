from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_aqaa.data.datasets import DataConfig, build_dataset, build_validation_dataset
from megatron_aqaa.data.indexed import Documents, DocumentWriter
from megatron_aqaa.data.sample import LossWeights, SampleBuilder
from megatron_aqaa.vocabulary import Vocabulary

VOCABULARY = Vocabulary.for_text(160)
FIXTURE_IS_SHARED = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(prefix: Path, lengths: list[int], seed: int = 0, first_token: int | None = None) -> str:
    """Documents of random text and audio with a random mask; token 1 of document i is `first_token` or 10 + i."""
    random = np.random.default_rng(seed)
    with DocumentWriter(prefix, VOCABULARY, with_mask=True) as writer:
        for index, length in enumerate(lengths):
            token_ids = random.integers(10, VOCABULARY.audio_stop, length)
            token_ids[0] = VOCABULARY.bos
            token_ids[1:2] = 10 + index if first_token is None else first_token
            writer.add(token_ids, random.integers(0, 2, length))
    return str(prefix)


def config(prefix: str, **settings: object) -> DataConfig:
    return DataConfig(**{"train": {prefix: 1.0}, "sequence_length": 32, "packing": "whole", **settings})


def documents_of(sample: dict[str, torch.Tensor]) -> list[list[int]]:
    """The documents of a packed sequence, rebuilt from its fields."""
    ids = sample["document_ids"]
    chosen = [ids == number for number in range(int(ids.max()) + 1)]
    return [[*sample["token_ids"][where].tolist(), int(sample["labels"][where][-1])] for where in chosen]


def assert_labels_follow(sample: dict[str, torch.Tensor]) -> None:
    """A label is the next token of the same document; everywhere else it weighs nothing."""
    ids, tokens, labels, weights = (sample[k] for k in ("document_ids", "token_ids", "labels", "loss_mask"))
    inside = (ids[1:] == ids[:-1]) & (ids[1:] >= 0)
    assert torch.equal(labels[:-1][inside], tokens[1:][inside])
    assert not weights[ids < 0].any() and not tokens[ids < 0].any() and not labels[ids < 0].any()
    steps = ids[ids >= 0]
    assert steps[0] == 0 and set((steps[1:] - steps[:-1]).tolist()) <= {0, 1}


@given(lengths=st.lists(st.integers(2, 33), min_size=1, max_size=40), epochs=st.integers(1, 3))
@FIXTURE_IS_SHARED
def test_whole_keeps_documents_whole_and_counts_every_token(tmp_path: Path, lengths: list[int], epochs: int) -> None:
    prefix = write(tmp_path / "a", lengths)
    written = [(d.token_ids.tolist(), d.loss_mask.tolist()) for d in Documents(prefix)]
    per_epoch = len(build_validation_dataset(config(prefix, validation=(prefix,)), VOCABULARY))
    dataset = build_dataset(config(prefix), VOCABULARY, (epochs - 1) * per_epoch + 1, seed=3)
    found: Counter[tuple[int, ...]] = Counter()
    targets = 0
    for sample in (dataset[i] for i in range(len(dataset))):
        assert all(sample[name].shape == (32,) for name in sample)
        assert_labels_follow(sample)
        found.update(tuple(document) for document in documents_of(sample))
        targets += int(sample["loss_mask"].sum())
    once = Counter(tuple(tokens) for tokens, _ in written)
    num_epochs = sum(found.values()) // len(written)
    assert num_epochs >= epochs and found == Counter({key: n * num_epochs for key, n in once.items()})
    assert targets == num_epochs * sum(sum(mask[1:]) for _, mask in written)


def test_epochs_have_different_packs_and_the_seed_decides(tmp_path: Path) -> None:
    prefix = write(tmp_path / "a", np.random.default_rng(1).integers(2, 20, 60).tolist())
    datasets = [build_dataset(config(prefix), VOCABULARY, 60, seed) for seed in (0, 0, 1)]
    packs = [[frozenset(map(tuple, documents_of(dataset[i]))) for i in range(60)] for dataset in datasets]
    assert packs[0] == packs[1] != packs[2]
    first_epoch = set(packs[0][:18])
    assert len(first_epoch & set(packs[0][25:])) < len(first_epoch) / 2


@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=12), length=st.sampled_from([8, 32]))
@FIXTURE_IS_SHARED
def test_cut_is_the_stream_of_all_documents(tmp_path: Path, lengths: list[int], length: int) -> None:
    prefix = write(tmp_path / "a", lengths)
    settings = config(prefix, packing="cut", sequence_length=length, validation=(prefix,))
    dataset = build_validation_dataset(settings, VOCABULARY)
    samples = [dataset[i] for i in range(len(dataset))]
    for sample in samples:
        assert all(sample[name].shape == (length,) for name in sample)
        assert_labels_follow(sample)
    targets = sum(int(sample["loss_mask"].sum()) for sample in samples)
    assert targets == sum(int(document.loss_mask[1:].sum()) for document in Documents(prefix))
    # every token but the very last of the stream is read exactly once
    read = Counter(int(t) for s in samples for t in s["token_ids"][s["document_ids"] >= 0])
    stream = Counter(int(t) for document in Documents(prefix) for t in document.token_ids)
    assert sum((stream - read).values()) == 1 and not read - stream


def test_cut_borders_carry_no_loss(tmp_path: Path) -> None:
    with DocumentWriter(tmp_path / "a", VOCABULARY) as writer:
        writer.add([1, 20, 21, 3])
        writer.add([1, 30, 3])
    settings = config(str(tmp_path / "a"), packing="cut", sequence_length=9, validation=(str(tmp_path / "a"),))
    sample = build_validation_dataset(settings, VOCABULARY)[0]
    by_first = {20: [1, 20, 21, 3], 30: [1, 30, 3]}
    order = [by_first[int(sample["token_ids"][1])]]
    order += [document for document in by_first.values() if document not in order]
    n, m = len(order[0]), len(order[1])
    assert sample["token_ids"].tolist() == [*order[0], *order[1][:-1], *[0] * (9 - n - m + 1)]
    assert sample["labels"].tolist() == [*order[0][1:], 0, *order[1][1:], *[0] * (9 - n - m + 1)]
    assert sample["loss_mask"].tolist() == [*[1.0] * (n - 1), 0.0, *[1.0] * (m - 1), *[0.0] * (9 - n - m + 1)]
    assert sample["document_ids"].tolist() == [*[0] * n, *[1] * (m - 1), *[-1] * (9 - n - m + 1)]


@pytest.mark.parametrize("packing", ["cut", "whole"])
def test_weights_follow_the_modality_of_the_label(tmp_path: Path, packing: str) -> None:
    prefix = write(tmp_path / "a", [20] * 30)
    settings = config(prefix, packing=packing, text_loss_weight=7, audio_loss_weight=2)
    plain = build_dataset(config(prefix, packing=packing), VOCABULARY, 10, seed=0)
    weighted = build_dataset(settings, VOCABULARY, 10, seed=0)
    for index in range(10):
        mask, labels = plain[index]["loss_mask"], plain[index]["labels"]
        assert set(mask.tolist()) == {0.0, 1.0}
        factor = torch.where(VOCABULARY.is_audio(labels), 2.0, 7.0)
        assert torch.equal(weighted[index]["loss_mask"], mask * factor)


def test_noise_touches_only_audio_outside_the_loss(tmp_path: Path) -> None:
    prefix = write(tmp_path / "a", [30] * 200)
    settings = config(prefix, audio_noise_ratio=0.08, validation=(prefix,))
    clean, noisy = (build_dataset(c, VOCABULARY, 200, seed=5) for c in (config(prefix), settings))
    targets = {tuple(d.token_ids.tolist()): d.loss_mask for d in Documents(prefix)}
    replaced = eligible = 0
    for index in range(200):
        a, b = clean[index], noisy[index]
        assert torch.equal(a["labels"], b["labels"]) and torch.equal(a["loss_mask"], b["loss_mask"])
        mask = np.concatenate([targets[tuple(document)][:-1] for document in documents_of(a)])
        tokens, changed = a["token_ids"][: len(mask)], (a["token_ids"] != b["token_ids"])[: len(mask)]
        may_change = VOCABULARY.is_audio(tokens) & torch.from_numpy(mask == 0)
        assert not (changed & ~may_change).any()
        assert torch.equal(VOCABULARY.modality(tokens), VOCABULARY.modality(b["token_ids"][: len(mask)]))
        replaced += int(changed.sum())
        eligible += int(may_change.sum())
    assert 0.06 < replaced / eligible < 0.1
    again = build_dataset(settings, VOCABULARY, 200, seed=5)
    assert torch.equal(again[17]["token_ids"], noisy[17]["token_ids"])
    first, second = (build_validation_dataset(c, VOCABULARY) for c in (settings, config(prefix, validation=(prefix,))))
    assert torch.equal(first[3]["token_ids"], second[3]["token_ids"])


@pytest.mark.parametrize("packing", ["cut", "whole"])
def test_blend_proportions(tmp_path: Path, packing: str) -> None:
    weights = {write(tmp_path / name, [20] * 12, first_token=token): w for name, token, w in BLEND}
    dataset = build_dataset(config("", train=weights, packing=packing), VOCABULARY, 200, seed=0)
    assert len(dataset) >= 200
    marks = Counter(int(token) for i in range(200) for token in set(dataset[i]["token_ids"].tolist()) & {11, 12, 13})
    assert [marks[token] for _, token, _ in BLEND] == [100, 60, 40]


BLEND = [("a", 11, 5.0), ("b", 12, 3.0), ("c", 13, 2.0)]


def test_validation_reads_every_set_once(tmp_path: Path) -> None:
    prefixes = tuple(
        write(tmp_path / name, [20] * n, first_token=token) for name, n, token in (("a", 9, 11), ("b", 4, 12))
    )
    dataset = build_validation_dataset(config(prefixes[0], validation=prefixes), VOCABULARY)
    marks = Counter(document[1] for i in range(len(dataset)) for document in documents_of(dataset[i]))
    assert marks == {11: 9, 12: 4}


def test_small_data_is_repeated_to_the_asked_size(tmp_path: Path) -> None:
    prefix = write(tmp_path / "a", [5])
    for packing in ("cut", "whole"):
        dataset = build_dataset(config(prefix, packing=packing), VOCABULARY, 50, seed=0)
        assert len(dataset) >= 50 and dataset[49]["token_ids"].shape == (32,)


def test_a_missing_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.idx: no such file; run"):
        build_dataset(config(str(tmp_path / "nowhere")), VOCABULARY, 4, seed=0)


@pytest.mark.parametrize(
    ("lengths", "message"), [([5, 34], "document 1 has 34 tokens; 1 of 2"), ([1, 5], "document 0 has 1")]
)
def test_documents_that_do_not_fit_are_named(tmp_path: Path, lengths: list[int], message: str) -> None:
    prefix = write(tmp_path / "a", lengths)
    with pytest.raises(ValueError, match=f"{prefix}: {message}.* at least {max(lengths) - 1}"):
        build_dataset(config(prefix), VOCABULARY, 4, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": {}}, "data.train: name at least one"),
        ({"train": {"a": 0.0}}, "data.train: a has weight 0"),
        ({"sequence_length": 0}, "sequence_length = 0"),
        ({"text_loss_weight": -1}, "text_loss_weight"),
        ({"text_loss_weight": 0, "audio_loss_weight": 0}, "not both 0"),
        ({"audio_noise_ratio": 1.0}, "audio_noise_ratio = 1.0"),
        ({"audio_noise_ratio": 0.1, "packing": "cut"}, "no effect with packing: cut"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config("a", **settings)


def test_no_validation_set_is_an_error() -> None:
    with pytest.raises(ValueError, match="data.validation: name at least one prefix"):
        build_validation_dataset(config("a"), VOCABULARY)


def test_an_empty_sequence_is_all_padding() -> None:
    sample = SampleBuilder(4, VOCABULARY, LossWeights()).finish()
    assert sample["document_ids"].tolist() == [-1] * 4 and not sample["loss_mask"].any()
