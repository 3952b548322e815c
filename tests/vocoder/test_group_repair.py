"""Whatever is done to a stream, a fault costs at most the group it touches, and nothing goes missing unreported."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_aqaa.vocoder.group_repair import Group, GroupFault, GroupRepair, repaired_groups
from tests.vocoder.tiny_vocoder import VOCABULARY

V = VOCABULARY
L, S = V.linguistic_start, V.semantic_start
# what faults bring in: codes that no clean group has, markers, text, and what is no id at all
NO_AUDIO = [7, V.eot, V.audio_end, V.size, -1]
STRAY = st.integers(L + 900, L + 1000) | st.integers(S + 3900, S + 4000) | st.sampled_from(NO_AUDIO)
FAULT = st.tuples(st.sampled_from(["insert", "delete", "replace"]), st.floats(0, 1, exclude_max=True), STRAY)


def clean_groups(count: int) -> list[Group]:
    """Groups that share no id."""
    return [(L + 2 * i, L + 2 * i + 1, S + 3 * i, S + 3 * i + 1, S + 3 * i + 2) for i in range(count)]


def flat(groups: list[Group]) -> list[int]:
    return [token_id for group in groups for token_id in group]


def repaired(token_ids: list[int]) -> tuple[list[Group], list[GroupFault]]:
    faults: list[GroupFault] = []
    return list(repaired_groups(token_ids, V, faults.append)), faults


def damaged(token_ids: list[int], faults: list[tuple[str, float, int]]) -> list[int]:
    ids = list(token_ids)
    for deed, place, stray in faults:
        at = int(place * len(ids))
        ids[at : at + (deed != "insert")] = [] if deed == "delete" else [stray]
    return ids


@given(st.integers(0, 30))
def test_a_clean_stream_comes_out_as_it_was(count: int) -> None:
    groups = clean_groups(count)
    assert repaired(flat(groups)) == (groups, [])


@given(st.integers(1, 30), st.lists(FAULT, max_size=8))
def test_each_fault_costs_at_most_one_group(count: int, faults: list[tuple[str, float, int]]) -> None:
    clean = clean_groups(count)
    out, _ = repaired(damaged(flat(clean), faults))
    unharmed = [group for group in out if group in clean]
    assert all(a < b for a, b in pairwise(unharmed))  # in their order, none twice
    assert len(clean) - len(unharmed) <= len(faults)
    assert len(out) - len(unharmed) <= len(faults)


@given(st.lists(st.one_of(STRAY, st.integers(L, L + 9), st.integers(S, S + 9)), max_size=60))
def test_any_ids_at_all_give_whole_groups_and_an_account_of_the_rest(ids: list[int]) -> None:
    out, faults = repaired(ids)
    assert all(V.modality(np.array(group)).tolist() == [1, 1, 2, 2, 2] for group in out)
    assert sorted([*flat(out), *(i for fault in faults for i in fault.dropped)]) == sorted(ids)
    positions = [fault.position for fault in faults]
    assert positions == sorted(set(positions))
    assert all(ids[fault.position] == fault.token_id for fault in faults if fault.token_id is not None)


@given(st.lists(STRAY | st.integers(L, L + 9) | st.integers(S, S + 9), max_size=60), st.data())
def test_pieces_of_any_length_make_no_difference(ids: list[int], data: st.DataObject) -> None:
    faults: list[GroupFault] = []
    repair, groups, rest = GroupRepair(V, faults.append), [], ids
    while rest:
        length = data.draw(st.integers(0, 9))
        groups += repair.push(rest[:length] if length != 1 else rest[0])
        rest = rest[length:]
    repair.finish()
    assert (groups, faults) == repaired(ids)


@given(st.integers(2, 20), FAULT)
def test_a_single_fault_is_reported(count: int, fault: tuple[str, float, int]) -> None:
    """One or two reports, unless an id is replaced by another of its own codebook, which nobody can see."""
    ids = flat(clean_groups(count))
    broken = damaged(ids, [fault])
    modalities = [V.modality(np.array(x)).tolist() for x in (ids, broken)]
    assert len(repaired(broken)[1]) in ((0,) if modalities[0] == modalities[1] else (1, 2))


@pytest.mark.parametrize(
    ("stream", "kept", "reports"),
    [
        ("LLSSS T LLSSS", [(0, 1, 2, 3, 4), (6, 7, 8, 9, 10)], ["not_audio 5 1"]),
        ("LLS T SS", [(0, 1, 2, 4, 5)], ["not_audio 3 1"]),
        ("LLS X SS", [(0, 1, 2, 4, 5)], ["out_of_range 3 1"]),
        ("LLSSS L LLSSS", [(0, 1, 2, 3, 4), (6, 7, 8, 9, 10)], ["wrong_codebook 7 1"]),  # stray between groups
        ("LLSSS S LLSSS", [(0, 1, 2, 3, 4), (6, 7, 8, 9, 10)], ["wrong_codebook 5 1"]),
        ("LLSS LLSSS", [(4, 5, 6, 7, 8)], ["wrong_codebook 4 4"]),  # a semantic id lost
        ("LSSS LLSSS", [(4, 5, 6, 7, 8)], ["wrong_codebook 1 4"]),  # a linguistic id lost
        ("LLS L SS LLSSS", [(6, 7, 8, 9, 10)], ["wrong_codebook 3 3", "wrong_codebook 4 3"]),  # stray inside
        ("LLSSS LL T", [(0, 1, 2, 3, 4)], ["not_audio 7 1", "incomplete 8 2"]),
        ("SSS T LLSSS", [(4, 5, 6, 7, 8)], ["wrong_codebook 0 4"]),  # enters in the middle
    ],
)
def test_policy(stream: str, kept: list[Group], reports: list[str]) -> None:
    kinds = {"L": L, "S": S, "T": 7, "X": V.size + 5}
    out, faults = repaired([kinds[c] for c in stream if c != " "])
    assert len(out) == len(kept)
    assert [f"{f.kind} {f.position} {len(f.dropped)}" for f in faults] == reports
    numbered = [kinds[c] + 10 * i * (c in "LS") for i, c in enumerate(stream.replace(" ", ""))]
    assert repaired(numbered)[0] == [tuple(numbered[i] for i in group) for group in kept]


def test_strict_says_what_is_wrong_and_where() -> None:
    for ids, message in (
        ([L, L, S, L], rf"position 3: id {L} is linguistic where a semantic one was expected; dropped 3 ids"),
        ([L, S, L], rf"position 1: id {S} is semantic where a linguistic one was expected; dropped 2 ids"),
        ([7, L], "position 0: id 7 is no audio token; dropped 1 id"),
        ([L, -3, L], f"position 1: id -3 lies outside the vocabulary of {V.size}; dropped 1 id"),
        ([L, L, S], "position 3: the stream ends inside a group, after 3 of its 5 ids; dropped 3 ids"),
    ):
        with pytest.raises(ValueError, match=message):
            list(repaired_groups(ids, V))


def test_groups_come_out_as_soon_as_they_are_whole() -> None:
    repair = GroupRepair(V)
    assert [len(repair.push(token_id)) for token_id in flat(clean_groups(2))] == [0, 0, 0, 0, 1] * 2


def test_ids_are_integers() -> None:
    with pytest.raises(ValueError, match="token ids must be integers, not float64"):
        GroupRepair(V).push([1.0])  # type: ignore[list-item]
