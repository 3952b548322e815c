"""Index builders against definitions written here as plain loops."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_aqaa import ops

lengths = st.integers(0, 200)
RANGE = {"linguistic_start": 10, "semantic_start": 20, "audio_stop": 25}


def interleave_codes_by_definition(linguistic, semantic):
    out = []
    while len(linguistic) >= 2 and len(semantic) >= 3:
        out += linguistic[:2] + semantic[:3]
        linguistic, semantic = linguistic[2:], semantic[3:]
    return out


def interleave_text_audio_by_definition(text, audio, text_chunk, audio_chunk, start, end):
    if not audio:
        return text
    out, opened = [], False
    while True:
        short = len(text) < text_chunk
        out, text = out + text[:text_chunk], text[text_chunk:]
        if not opened:
            out, opened = out + start, True
        count = len(audio) if short else audio_chunk
        out, audio = out + audio[:count], audio[count:]
        if not audio:
            return out + end + text


def packing_plan_by_definition(lengths, capacity):
    bins, rooms, filled = [], [], []
    for turn, item in enumerate(sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))):
        fitting = [b for b, room in enumerate(rooms) if room >= lengths[item]]
        if fitting:
            best = min(fitting, key=lambda b: (rooms[b], -filled[b]))
        else:
            best = len(bins)
            bins.append([])
            rooms.append(capacity)
            filled.append(turn)
        filled[best] = turn
        bins[best].append(item)
        rooms[best] -= lengths[item]
    return [sorted(b) for b in bins]


def split(plan):
    return [list(plan.order[a:b]) for a, b in zip(plan.offsets, plan.offsets[1:], strict=False)]


@pytest.mark.parametrize("num_linguistic", range(0, 201))
def test_interleave_codes_every_length(num_linguistic):
    linguistic = list(range(num_linguistic))
    for num_semantic in {0, 1, 2, 3, *range(max(0, num_linguistic * 3 // 2 - 4), num_linguistic * 3 // 2 + 5), 200}:
        semantic = list(range(1000, 1000 + num_semantic))
        out = ops.interleave_codes(linguistic, semantic)
        assert out.dtype == np.int64
        assert out.tolist() == interleave_codes_by_definition(linguistic, semantic)


@given(lengths, lengths, st.integers(0, 65536), st.integers(0, 4096))
@settings(deadline=None)
def test_deinterleave_undoes_interleave(num_linguistic, num_semantic, linguistic_start, gap):
    starts = {"linguistic_start": linguistic_start, "semantic_start": linguistic_start + 200 + gap}
    linguistic, semantic = np.arange(num_linguistic), np.arange(num_semantic)
    codes = ops.deinterleave_codes(ops.interleave_codes(linguistic, semantic, **starts), **starts)
    groups = min(num_linguistic // 2, num_semantic // 3)
    assert codes.linguistic.tolist() == linguistic[: 2 * groups].tolist()
    assert codes.semantic.tolist() == semantic[: 3 * groups].tolist()


def test_interleave_codes_by_hand():
    out = ops.interleave_codes([7, 8, 9], [1, 2, 3, 4], linguistic_start=65536, semantic_start=66560)
    assert out.tolist() == [65543, 65544, 66561, 66562, 66563]


@pytest.mark.parametrize("num_text", range(0, 201, 1))
def test_interleave_text_audio_every_length(num_text):
    text = list(range(num_text))
    for num_audio in {0, 5, 15, 200, *range(max(0, num_text // 10 * 15 - 15), num_text // 10 * 15 + 20, 5)}:
        audio = list(range(1000, 1000 + num_audio))
        out = ops.interleave_text_audio(text, audio, audio_start=5000, audio_end=5001)
        assert out.tolist() == interleave_text_audio_by_definition(text, audio, 10, 15, [5000], [5001])


@given(lengths, lengths, st.integers(1, 40), st.integers(1, 40))
@settings(deadline=None)
def test_interleave_text_audio_any_chunk(num_text, num_audio, text_chunk, audio_chunk):
    text, audio = list(range(num_text)), list(range(1000, 1000 + num_audio))
    out = ops.interleave_text_audio(text, audio, text_chunk, audio_chunk)
    assert out.tolist() == interleave_text_audio_by_definition(text, audio, text_chunk, audio_chunk, [], [])


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(50, 120))
@settings(deadline=None)
def test_packing_plan_follows_the_definition(lengths, capacity):
    plan = ops.packing_plan(lengths, capacity)
    assert split(plan) == packing_plan_by_definition(lengths, capacity)
    assert sorted(plan.order.tolist()) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in items) <= capacity for items in split(plan))


def test_packing_plan_over_a_wide_range_of_lengths():
    lengths = (np.random.default_rng(0).lognormal(9, 1.5, 400).astype(int) % 300_000 + 1).tolist()
    assert split(ops.packing_plan(lengths, 300_000)) == packing_plan_by_definition(lengths, 300_000)


def test_packing_plan_of_nothing():
    plan = ops.packing_plan([], 10)
    assert (plan.offsets.tolist(), plan.order.tolist()) == ([0], [])


def test_integer_types_and_layouts_are_taken_as_they_come():
    codes = np.arange(40)
    expected = ops.interleave_codes(codes[::2], codes[::-1][:30]).tolist()
    for dtype in (np.int16, np.int32, np.uint8):
        narrow = codes.astype(dtype)
        assert ops.interleave_codes(narrow[::2], narrow[::-1][:30]).tolist() == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.interleave_codes([1, -4], [1, 2, 3]), r"linguistic\[1\] = -4 is negative"),
        (lambda: ops.interleave_codes([[1, 2]], [1, 2, 3]), "linguistic must be one-dimensional, not 2"),
        (lambda: ops.interleave_codes([1.5, 2.0], [1, 2, 3]), "linguistic must hold integers, not float64"),
        (lambda: ops.interleave_codes([1, 2], 3), "semantic must be one-dimensional, not 0"),
        (lambda: ops.deinterleave_codes([1, 2, 3]), "length 3 is not a multiple of 5"),
        (
            lambda: ops.deinterleave_codes([10, 20, 20, 20, 20], linguistic_start=10, semantic_start=20),
            r"token 20 at position 1 breaks the group grammar \[L L S S S\]: a linguistic id is due",
        ),
        (
            lambda: ops.deinterleave_codes([10, 11, 20, 12, 20], linguistic_start=10, semantic_start=20),
            "token 12 at position 3 .* a semantic id is due",
        ),
        (
            lambda: ops.deinterleave_codes([10, 11, 20, 24, 25], **RANGE),
            "token 25 at position 4 .* a semantic id is due there, 20 to 24",
        ),
        (lambda: ops.deinterleave_codes([-(2**63), 1, 2, 3, 4]), f"token -{2**63} at position 0 .* from 0"),
        (lambda: ops.interleave_codes([1, 10], [1, 2, 3], **RANGE), r"linguistic\[1\] = 10 is no code .* end at 9"),
        (lambda: ops.interleave_codes([1, 2], [5, 2, 3], **RANGE), r"semantic\[0\] = 5 is no code .* end at 4"),
        (lambda: ops.interleave_codes([], [], semantic_start=20, audio_stop=20), "audio_stop = 20 leaves no semantic"),
        (lambda: ops.interleave_text_audio([1], [2], text_chunk=0), "must be at least 1, not 0 and 15"),
        (lambda: ops.interleave_text_audio([1], [2], audio_start=-3), "audio_start must be a token id or None, not -3"),
        (lambda: ops.packing_plan([3, 11], 10), r"item 1 has length 11: lengths must lie in \[1, 10\]"),
        (lambda: ops.packing_plan([3, 0], 10), "item 1 has length 0"),
        (lambda: ops.packing_plan([], 0), "capacity must be at least 1, not 0"),
        (lambda: ops.packing_plan([3], 10**12), "capacity must be at most 16777216, not 1000000000000"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_interpreter_lock_is_released():
    lengths = np.random.default_rng(0).integers(1, 1001, 1_000_000)  # 150 ms in one call
    finished = threading.Event()
    thread = threading.Thread(target=lambda: (ops.packing_plan(lengths, 4096), finished.set()))
    thread.start()
    ticks = 0
    while not finished.wait(0.001):
        ticks += 1
    thread.join()
    assert ticks > 2  # with the lock held this thread could not have run in between
