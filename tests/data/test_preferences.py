"""Pairs are checked when they are opened, and packed whole with their masks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from megatron_aqaa.data.indexed import DocumentWriter
from megatron_aqaa.data.loader import batches
from megatron_aqaa.data.preferences import PairCounts, PairRows, PreferencePairs, TargetKind
from tests.training.dpo.tiny_pairs import VOCABULARY, document, write_documents, write_pairs

V = VOCABULARY
L, S, OPEN, CLOSE, EOT = V.linguistic_start, V.semantic_start, V.audio_start, V.audio_end, V.eot
PROMPT = [V.bos, 20, 21]
SPOKEN = [OPEN, L, L + 1, S, S + 1, S + 2, CLOSE]
OTHER_CODES = [OPEN, L + 3, L + 1, S, S + 1, S + 2, CLOSE]


def pairs_of(
    *answers: list[int], folder: Path, mask: TargetKind = "text", nll: TargetKind | None = None, length: int = 64
) -> PreferencePairs:
    """Pairs of these answers, two in a row, all to one prompt."""
    prefix = write_documents(folder / "pairs", [document(PROMPT, answer) for answer in answers])
    return PreferencePairs([prefix], V, length, mask, nll or mask)


@pytest.mark.parametrize(
    ("mask", "chosen", "rejected"),
    [
        ("text", [30, 31, OPEN, CLOSE, EOT], [40, OPEN, CLOSE, EOT]),
        ("audio", SPOKEN[1:-1], OTHER_CODES[1:-1]),
        ("all", [30, 31, *SPOKEN, EOT], [40, *OTHER_CODES, EOT]),
    ],
)
def test_a_row_by_hand(tmp_path: Path, mask: TargetKind, chosen: list[int], rejected: list[int]) -> None:
    answers = [30, 31, *SPOKEN, EOT], [40, *OTHER_CODES, EOT]
    row = pairs_of(*answers, folder=tmp_path, mask=mask, nll="all").row(np.array([0]), 3)
    labels, ids, preference = row["labels"], row["document_ids"], row["preference_mask"] > 0
    assert labels[preference & (ids == 0)].tolist() == chosen
    assert labels[preference & (ids == 1)].tolist() == rejected
    assert labels[row["nll_mask"] > 0].tolist() == [30, 31, *SPOKEN, EOT]
    assert row["loss_mask"].equal((preference | (row["nll_mask"] > 0)).float())
    assert row["pairs"].tolist() == [0, -1, -1]
    assert row["num_targets"].tolist() == [[len(chosen), len(rejected), 10], [0, 0, 0], [0, 0, 0]]
    # prompt and answer without the last token, which is a label only; each half is a document of its own
    assert row["token_ids"][ids == 0].tolist() == [*PROMPT, 30, 31, *SPOKEN]
    assert row["token_ids"][ids == 1].tolist() == [*PROMPT, 40, *OTHER_CODES]
    assert (ids[23:] == -1).all() and row["loss_mask"][23:].sum() == 0
    assert row["answer_ids"].equal(ids)


def test_pairs_without_a_preference_are_left_out_and_counted(tmp_path: Path) -> None:
    same_words, silent = ([30, *SPOKEN, EOT], [30, *OTHER_CODES, EOT]), ([30, EOT], [30, *SPOKEN, EOT])
    different = [30, *SPOKEN, EOT], [31, *OTHER_CODES, EOT]
    answers = [*same_words, *silent, *different]
    text = pairs_of(*answers, folder=tmp_path)
    assert text.counts == PairCounts(total=3, used=2, identical=1, without_targets=0)
    assert text.used.tolist() == [1, 2]  # markers are text
    audio = pairs_of(*answers, folder=tmp_path, mask="audio")
    assert audio.counts == PairCounts(total=3, used=2, identical=0, without_targets=1)
    assert pairs_of(*answers, folder=tmp_path, mask="all").counts.used == 3


def test_no_usable_pair_is_an_error_with_the_counts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs: no pair can be used with loss_mask: text: .*identical=1"):
        pairs_of([30, EOT], [30, EOT], folder=tmp_path)


def test_halves_with_different_prompts_are_named(tmp_path: Path) -> None:
    documents = [document(PROMPT, [30, EOT]), document(PROMPT, [31, EOT])]
    prefix = write_documents(tmp_path / "pairs", [*documents, document(PROMPT, [30, EOT]), document([1, 20], [3])])
    with pytest.raises(ValueError, match=r"pairs, pair 1: the halves have different prompts \(3 and 2 tokens"):
        PreferencePairs([prefix], V, 64, "text", "text")


def test_a_pair_that_does_not_fit_is_named_with_the_remedy(tmp_path: Path) -> None:
    answers = [30, EOT], [31, EOT], [30] * 20, [31] * 30
    with pytest.raises(ValueError, match=r"pair 1 takes 54 positions; 1 of 2 .*= 53. Set it to at least 54"):
        pairs_of(*answers, folder=tmp_path, length=53)
    assert len(pairs_of(*answers, folder=tmp_path, length=54).used) == 2


def test_what_is_no_preference_data_is_refused(tmp_path: Path) -> None:
    documents = [document(PROMPT, [30, EOT]), document(PROMPT, [31, EOT])]
    with pytest.raises(ValueError, match=r"chat: is no preference data set \(kind 'chat' in chat.json, 2 documents"):
        PreferencePairs([write_documents(tmp_path / "chat", documents, "chat")], V, 64, "text", "text")
    with pytest.raises(ValueError, match="odd: is no preference data set .*1 documents"):
        PreferencePairs([write_documents(tmp_path / "odd", documents[:1])], V, 64, "text", "text")
    with DocumentWriter(tmp_path / "bare", V) as writer:
        writer.add([1, 2])
        writer.add([1, 3])
    with pytest.raises(ValueError, match=r"bare: is no preference data set \(kind None in bare.json, .* no mask"):
        PreferencePairs([tmp_path / "bare"], V, 64, "text", "text")


def test_data_sets_are_numbered_through(tmp_path: Path) -> None:
    prefixes = [write_pairs(tmp_path / "a", 3), write_pairs(tmp_path / "b", 4, seed=5)]
    both, second = (PreferencePairs(p, V, 96, "text", "text") for p in (prefixes, prefixes[1:]))
    assert len(both) == 7
    for number in range(4):
        assert np.array_equal(both[3 + number].rejected.token_ids, second[number].rejected.token_ids)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PreferencePairs:
    return PreferencePairs([write_pairs(tmp_path_factory.mktemp("rows") / "p", 30)], V, 96, "text", "all")


def test_every_pair_once_an_epoch_in_another_order(pairs: PreferencePairs) -> None:
    one = PairRows(pairs, pairs.used, seed=1)
    assert sorted(np.concatenate(one.packs)) == list(range(30))
    assert all(pairs.positions[pack].sum() <= 96 for pack in one.packs)
    two = PairRows(pairs, pairs.used, seed=1, num_rows=len(one) + 1)
    assert all(np.array_equal(a, b) for a, b in zip(one.packs, two.packs, strict=False))
    second = two.packs[len(one) :]
    assert sorted(np.concatenate(second)) == list(range(30))
    assert [p.tolist() for p in second] != [p.tolist() for p in one.packs]
    assert [p.tolist() for p in PairRows(pairs, pairs.used, seed=2).packs] != [p.tolist() for p in one.packs]


def test_rows_without_pairs_fill_the_last_batch(pairs: PreferencePairs) -> None:
    rows = PairRows(pairs, pairs.used[:7], seed=0, multiple_of=16)
    assert len(rows) == 16
    read = [number for row in rows for number in row["pairs"].tolist() if number >= 0]  # type: ignore[attr-defined]
    assert sorted(read) == pairs.used[:7].tolist()
    assert rows[15]["document_ids"].eq(-1).all() and not rows[15]["loss_mask"].any()


def test_the_loader_batches_all_fields(pairs: PreferencePairs) -> None:
    rows = PairRows(pairs, pairs.used, seed=0, multiple_of=4)
    batch = next(batches(rows, micro_batch_size=2, num_microbatches=2))
    places = rows.num_places
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        **dict.fromkeys(
            ("token_ids", "labels", "loss_mask", "document_ids", "answer_ids", "preference_mask", "nll_mask"), (2, 96)
        ),
        "pairs": (2, places),
        "num_targets": (2, places, 3),
    }
    assert dataclasses.asdict(pairs.counts) == {"total": 30, "used": 30, "identical": 0, "without_targets": 0}
