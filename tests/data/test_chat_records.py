"""Every fault is told with file, line and reason; everything else becomes a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_aqaa.data.audio_files import AudioFiles
from megatron_aqaa.data.chat_messages import AudioPart, Message, TextPart, with_history_as_text
from megatron_aqaa.data.chat_records import BadRecord, ChatReader, ChatRecord, PreferenceRecord, count_records
from tests.data.tiny_chat import assistant, codes, conversation, pair, said, speech, user, write_lines


def write_wave(path: Path, num_samples: int = 3200) -> Path:
    soundfile.write(path, np.sin(np.arange(num_samples) / 9).astype(np.float32) / 2, 16000, subtype="PCM_16")
    return path


def fault(path: Path, record: Any, **settings: Any) -> BadRecord:
    """The fault of a record that stands in line 2, between two good ones of its kind."""
    good = pair() if isinstance(record, dict) and "prompt" in record else conversation()
    write_lines(path, good, record, good)
    before, bad, after = ChatReader(**settings).read(path)
    assert count_records(path) == 3
    assert not isinstance(before, BadRecord) and not isinstance(after, BadRecord), "the reader goes on behind a fault"
    assert isinstance(bad, BadRecord) and (bad.file, bad.line) == (path, 2)
    assert str(bad).startswith(f"{path}:2: ")
    return bad


def test_a_conversation_of_texts_files_and_codes(tmp_path: Path) -> None:
    wave = write_wave(tmp_path / "question.wav")
    record = {
        "messages": [
            {"role": "system", "content": "be brief"},
            user([{"type": "text", "text": "listen"}, {"type": "audio", "path": "question.wav", "transcript": "hi"}]),
            assistant([*said("so", 2), *said("long", 1, seed=1)]),
        ],
        "id": 17,  # other keys are the writer's own
    }
    (found,) = ChatReader().read(write_lines(tmp_path / "chat.jsonl", record))
    parts = [TextPart("so"), AudioPart(codes=tuple(codes(2))), TextPart("long"), AudioPart(codes=tuple(codes(1, 1)))]
    assert found == ChatRecord(
        tmp_path / "chat.jsonl",
        1,
        (
            Message("system", (TextPart("be brief"),)),
            Message("user", (TextPart("listen"), AudioPart(wave, transcript="hi"))),
            Message("assistant", tuple(parts)),
        ),
    )


def test_a_pair_of_contents_or_messages(tmp_path: Path) -> None:
    record = pair(chosen=said("four", 2), rejected=assistant("five"))
    (found,) = ChatReader().read(write_lines(tmp_path / "pairs.jsonl", record))
    assert isinstance(found, PreferenceRecord)
    assert found.prompt == (Message("user", (TextPart("what is two plus two"),)),)
    assert found.chosen == Message("assistant", (TextPart("four"), AudioPart(codes=tuple(codes(2)))))
    assert found.rejected == Message("assistant", (TextPart("five"),)) and not found.same_words


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"
    lines = json.dumps(conversation(text), ensure_ascii=False)
    (found,) = ChatReader().read(write_lines(tmp_path / "chat.jsonl", lines))
    assert isinstance(found, ChatRecord) and found.messages[-1].words == text


L, S = 7, 1024 + 7  # a linguistic and a semantic code


@pytest.mark.parametrize(
    ("record", "problem", "reason"),
    [
        ('{"messages": [{"role": "user", "content": "wh', "not JSON", "is the line cut off?"),
        ("", "not JSON", "is an empty line"),
        ("[1, 2]", "wrong type", "record: expected an object, found [1, 2]"),
        ({"mesages": []}, "missing key", "mesages: did you mean messages?"),
        ({"prompt": [user("x")], "chosen": "y", "rejectd": "z"}, "missing key", "no key 'rejected', found prompt"),
        ({"messages": "hello"}, "wrong type", "messages: expected a list of messages, found 'hello'"),
        (
            {"messages": [user("x", contnt="y")]},
            "unknown key",
            "messages[0]: unknown key 'contnt'; did you mean content?",
        ),
        ({"messages": [{"role": "user"}]}, "missing key", "messages[0]: no key 'content', found role"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "unknown role", "unknown role 'usr'; did you mean user?"),
        (conversation([{"type": "txt", "text": "x"}]), "unknown part type", "unknown type 'txt'; did you mean text?"),
        (
            conversation([{"type": "image_url"}]),
            "unknown part type",
            "messages[1].content[0].type: unknown type 'image_url'",
        ),
        (conversation([{"text": "x"}]), "missing key", "messages[1].content[0]: no key 'type', found text"),
        (conversation([{"type": "text", "txt": "x"}]), "unknown key", "unknown key 'txt'; did you mean text?"),
        (conversation(question=[{"type": "audio"}]), "missing key", "a path or codes, found neither"),
        (conversation([speech(path="a.wav")]), "missing key", "a path or codes, found both"),
        (conversation(""), "empty text", "messages[1].content: is empty"),
        (conversation([{"type": "text", "text": " \n"}]), "empty text", "messages[1].content[0].text: is empty"),
        (conversation("broken \ud83d"), "broken text", "messages[1].content: is no text"),
        (conversation([]), "empty text", "messages[1].content: has no parts"),
        (conversation([speech(transcript="")]), "empty text", "messages[1].content[0].transcript: is empty"),
        (conversation(3), "wrong type", "messages[1].content: expected a text or a list of parts, found 3"),
        (
            conversation([{"type": "audio", "codes": [L, L, S, S, 5120]}]),
            "codes out of range",
            "codes[4] = 5120 lies outside 0 … 5119",
        ),
        (conversation([{"type": "audio", "codes": [-1, L, S, S, S]}]), "codes out of range", "codes[0] = -1"),
        (conversation([{"type": "audio", "codes": [L, L, S, S]}]), "incomplete group", "4 codes are not whole groups"),
        (conversation([{"type": "audio", "codes": []}]), "incomplete group", "codes: is empty"),
        (
            conversation([{"type": "audio", "codes": [L, S, L, S, S]}]),
            "wrong order of codebooks",
            "a linguistic id is due",
        ),
        (conversation([{"type": "audio", "codes": [L, L, S, S, L]}]), "wrong order of codebooks", "position 4"),
        (
            conversation([{"type": "audio", "codes": [L, L, S, S, 1.5]}]),
            "wrong type",
            "expected whole numbers, found 1.5",
        ),
        (
            conversation([{"type": "audio", "codes": "7 7"}]),
            "wrong type",
            "codes: expected a list of codes, found '7 7'",
        ),
        ({"messages": [assistant("x"), user("y")]}, "no final answer", "the last message is the user's"),
        ({"messages": []}, "no final answer", "there are no messages"),
        (pair("four", "four"), "identical halves", "chosen and rejected are the same: 'four'"),
        (pair(said("x", 2), assistant(said("x", 2))), "identical halves", "chosen and rejected are the same"),
        ({**pair(), "prompt": []}, "no question", "prompt: has no messages"),
        ({**pair(), "prompt": [user("x"), assistant("y")]}, "no question", "ends with the assistant's message"),
        (pair(chosen=user("x")), "unknown role", "chosen.role: 'user'; an answer is the assistant's"),
        (pair(rejected=None), "wrong type", "rejected: expected a text or a list of parts, found None"),
        ({"messages": [user("x", transcript="x"), assistant("y")]}, "misplaced transcript", "belongs to 0 audio parts"),
        (
            {"messages": [user([speech(), speech()], transcript="x")]},
            "misplaced transcript",
            "belongs to 2 audio parts",
        ),
        (
            conversation([*said("four")[:1], speech(transcript="five")]),
            "misplaced transcript",
            "'five' after the text 'four'",
        ),
    ],
)
def test_faults_of_a_record(tmp_path: Path, record: Any, problem: str, reason: str) -> None:
    found = fault(tmp_path / "chat.jsonl", record)
    assert found.problem == problem
    assert reason in found.reason


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "chat.jsonl", conversation())
    path.write_bytes(b'{"messages": "\xff\xfe"}\n' + path.read_bytes())
    bad, good = ChatReader().read(path)
    assert isinstance(bad, BadRecord) and (bad.line, bad.problem) == (1, "not JSON") and isinstance(good, ChatRecord)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (found,) = ChatReader().read(tmp_path / "empty.jsonl")
    assert isinstance(found, BadRecord) and (found.line, found.problem) == (1, "empty file")
    assert count_records(tmp_path / "empty.jsonl") == 1
    assert str(found).startswith(f"{tmp_path / 'empty.jsonl'}:1: the file is empty")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere.jsonl: no such file"):
        ChatReader().read(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize(
    ("name", "problem", "reason"),
    [
        ("missing.wav", "missing audio", "missing.wav: no such file"),
        ("folder", "missing audio", "folder: no such file"),
        ("x" * 300, "unreadable audio", "File name too long"),
        ("empty.wav", "unreadable audio", "empty.wav: not readable as wav, flac, ogg or mp3"),
        ("text.wav", "unreadable audio", "text.wav: not readable as wav, flac, ogg or mp3"),
        ("short.wav", "unreadable audio", "short.wav: 0.019 s; speech needs at least 0.06 s"),
    ],
)
def test_audio_files_that_cannot_be_used(tmp_path: Path, name: str, problem: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("RIFF but not audio")
    write_wave(tmp_path / "short.wav", 300)
    found = fault(tmp_path / "chat.jsonl", conversation(question=[{"type": "audio", "path": name}]))
    assert found.problem == problem
    assert "messages[0].content[0].path: " in found.reason and reason in found.reason


def test_decoding_finds_what_the_head_hides(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.full(3200, np.nan, np.float32), 16000, subtype="FLOAT")
    path = write_lines(tmp_path / "chat.jsonl", conversation(question=[{"type": "audio", "path": "nan.wav"}]))
    assert isinstance(next(ChatReader().read(path)), ChatRecord)
    found = next(ChatReader(audio_files=AudioFiles(decode=True)).read(path))
    assert isinstance(found, BadRecord) and "holds NaN or infinite samples" in found.reason


def test_answers_must_be_spoken_where_that_is_asked_for(tmp_path: Path) -> None:
    found = fault_of_unspoken(tmp_path / "chat.jsonl", conversation(said("four")), conversation("four"))
    assert (found.line, found.problem) == (2, "answer without audio")
    assert str(found).startswith(f"{tmp_path / 'chat.jsonl'}:2: the answer has no audio")
    found = fault_of_unspoken(tmp_path / "pairs.jsonl", pair(said("x"), said("y")), pair(said("x"), "y"))
    assert (found.line, found.problem) == (2, "answer without audio")


def fault_of_unspoken(path: Path, spoken: Any, unspoken: Any) -> BadRecord:
    good, bad = ChatReader(spoken_answers=True).read(write_lines(path, spoken, unspoken))
    assert not isinstance(good, BadRecord) and isinstance(bad, BadRecord)
    return bad


@pytest.mark.parametrize("kind", [None, "sft"])
def test_a_file_holds_records_of_one_kind(tmp_path: Path, kind: Any) -> None:
    path = write_lines(tmp_path / "chat.jsonl", conversation(), pair())
    good, bad = ChatReader(kind).read(path)
    assert isinstance(good, ChatRecord) and isinstance(bad, BadRecord)
    assert (bad.line, bad.problem) == (2, "wrong kind")
    assert bad.reason == "is a preference pair where a conversation is expected"


def test_pairs_whose_words_are_the_same(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "p.jsonl", pair(said("four", 1), said("four ", 2)), pair("four", said("four")), pair()
    )
    found = [record for record in ChatReader().read(path) if isinstance(record, PreferenceRecord)]
    assert [record.same_words for record in found] == [True, True, False]


def messages_of(path: Path, *messages: Any) -> list[Message]:
    (record,) = ChatReader().read(write_lines(path, {"messages": list(messages)}))
    assert isinstance(record, ChatRecord), record
    return list(record.messages)


def test_a_transcript_may_stand_at_the_part_or_at_the_message(tmp_path: Path) -> None:
    at_part = messages_of(tmp_path / "c.jsonl", user([speech(transcript="hi")]), assistant([speech(transcript="ho")]))
    at_message = messages_of(
        tmp_path / "c.jsonl", user([speech()], transcript="hi"), assistant([speech()], transcript="ho")
    )
    none = messages_of(tmp_path / "c.jsonl", user([speech(transcript=None)], transcript=None), assistant("ho"))
    assert at_part == at_message
    assert at_part[0].parts == (AudioPart(codes=tuple(codes(1)), transcript="hi"),)
    # the words of an assistant's speech are the text before it
    assert at_part[1].parts == (TextPart("ho"), AudioPart(codes=tuple(codes(1))))
    assert none[0].parts == (AudioPart(codes=tuple(codes(1))),)
    both = messages_of(tmp_path / "c.jsonl", assistant([{"type": "text", "text": "ho"}, speech(transcript="ho ")]))
    assert both[0].parts == at_part[1].parts


def test_earlier_speech_becomes_text_where_its_words_are_known(tmp_path: Path) -> None:
    heard = user([{"type": "text", "text": "listen"}, speech(1, seed=1, transcript="what is two plus two")])
    spoken = assistant([*said("four", 2), *said("really", 1)])
    unknown = user([speech(1, seed=2)])
    half_known = assistant([*said("yes"), speech(1, seed=3)])
    last = user([speech(1, seed=4, transcript="say it slowly")])
    messages = messages_of(tmp_path / "c.jsonl", heard, spoken, unknown, half_known, last, assistant(said("four")))
    history = with_history_as_text(messages)
    assert history[0].parts == (TextPart("listen"), TextPart("what is two plus two"))
    assert history[1].parts == (TextPart("four"), TextPart("really"))
    assert history[2:] == messages[2:], "speech without words, the question and its answer stay"
    assert with_history_as_text(messages[4:]) == messages[4:]


def test_speech_of_the_system_is_no_history(tmp_path: Path) -> None:
    voice = {"role": "system", "content": [speech(transcript="speak like this")]}
    messages = messages_of(tmp_path / "c.jsonl", voice, user("x"), assistant("y"), user("z"), assistant("w"))
    assert with_history_as_text(messages) == messages
