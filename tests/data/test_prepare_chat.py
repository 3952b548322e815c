"""Chat files become data sets, token by token, whatever way the work was split."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile

from megatron_aqaa.audio.io import RESAMPLER, load_waveform
from megatron_aqaa.data.datasets import DataConfig, build_dataset
from megatron_aqaa.data.finished import record_of
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.prepare_chat import ChatPreparation, PrepareChatConfig
from megatron_aqaa.tokenizer.chat import AudioSegment, ChatTemplate, Conversation, Turn
from megatron_aqaa.tokenizer.dual_codebook import DualCodebookTokenizer
from megatron_aqaa.tokenizer.text import TextTokenizer
from megatron_aqaa.vocabulary import AnswerFormat, Vocabulary
from tests.data.tiny_chat import assistant, codes, conversation, pair, said, speech, user, write_lines
from tests.tokenizer import tiny


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def template(tokenizer: Path) -> ChatTemplate:
    return ChatTemplate(TextTokenizer(tokenizer / "text.model"), Vocabulary.load(tokenizer / "vocabulary.yaml"))


def ids(template: ChatTemplate, num_groups: int, seed: int = 0) -> AudioSegment:
    return AudioSegment([code + template.vocabulary.linguistic_start for code in codes(num_groups, seed)])


def prepare(config: PrepareChatConfig) -> dict[str, Any]:
    preparation = ChatPreparation(config)
    preparation.tokenize()
    return preparation.write()


def written(prefix: Path) -> list[tuple[list[int], list[int]]]:
    return [(d.token_ids.tolist(), d.loss_mask.tolist()) for d in Documents(prefix)]


def listed(*conversations: Conversation) -> list[tuple[list[int], list[int]]]:
    return [(c.token_ids.tolist(), c.loss_mask.tolist()) for c in conversations]


def of_codes(tmp_path: Path, *records: Any, **settings: Any) -> PrepareChatConfig:
    """Configuration for one SFT data set of records that name no files; the tokenizer folder has no encoders."""
    path = write_lines(tmp_path / "chat.jsonl", *records)
    if not (tmp_path / "text.model").exists():
        tiny.write_text_model(tmp_path)
    return PrepareChatConfig(
        **{"tokenizer": tmp_path, "output": tmp_path / "out", "sft": {"train": (path,)}, **settings}
    )


MANY_TURNS = {
    "messages": [
        {"role": "system", "content": "be brief"},
        user([speech(2, seed=1, transcript="what is two plus two")]),
        assistant(said("that makes four", 3, seed=2)),
        user([speech(1, seed=3, transcript="say it slowly")]),
        assistant([*said("that makes", 1, seed=4), *said("four", 2, seed=5)]),
    ]
}


def many_turns(template: ChatTemplate, *, history_as_text: bool) -> list[Turn]:
    """The same by hand."""
    heard, spoken = (("what is two plus two",), ("that makes four",))
    if not history_as_text:
        heard, spoken = (ids(template, 2, 1),), (*spoken, ids(template, 3, 2))  # type: ignore[assignment]
    return [
        Turn("system", ("be brief",)),
        Turn("human", heard),
        Turn("assistant", spoken),
        Turn("human", (ids(template, 1, 3),)),
        Turn("assistant", ("that makes", ids(template, 1, 4), "four", ids(template, 2, 5))),
    ]


def test_a_conversation_of_many_turns(tmp_path: Path, template: ChatTemplate) -> None:
    config = of_codes(tmp_path, MANY_TURNS)
    summary = prepare(config)
    expected = template.encode(many_turns(template, history_as_text=True))
    assert written(config.output / "sft/train") == listed(expected)
    counts = summary["data_sets"]["sft/train"]
    assert (counts["kind"], counts["records"], counts["rejected"], counts["segments"]) == ("sft", 1, 0, 3)
    assert counts["audio_tokens"] == 5 * (1 + 1 + 2) and counts["audio_targets"] == 5 * 3
    assert counts["targets"] == expected.loss_mask.sum()
    assert counts["tokens"] == len(expected.token_ids) == counts["text_tokens"] + counts["audio_tokens"]
    assert json.loads((config.output / "summary.json").read_text()) == summary


@pytest.mark.parametrize("loss_on", ["last", "all"])
def test_history_may_keep_its_speech(tmp_path: Path, template: ChatTemplate, loss_on: Any) -> None:
    config = of_codes(tmp_path, MANY_TURNS, history="audio", loss_on=loss_on)
    prepare(config)
    expected = template.encode(many_turns(template, history_as_text=False), loss_on)
    assert written(config.output / "sft/train") == listed(expected)


@pytest.mark.parametrize(
    "answer_format",
    [AnswerFormat(6, 50), AnswerFormat(3, 5), AnswerFormat(layout="text_first"), AnswerFormat(layout="audio_only")],
    ids=str,
)
def test_layouts(tmp_path: Path, template: ChatTemplate, answer_format: AnswerFormat) -> None:
    config = of_codes(tmp_path, conversation(said("that makes four", 12)), answer_format=answer_format)
    summary = prepare(config)
    other = ChatTemplate(template.text_tokenizer, template.vocabulary, answer_format)
    turns = [Turn("human", ("what is two plus two",)), Turn("assistant", ("that makes four", ids(template, 12)))]
    assert written(config.output / "sft/train") == listed(other.encode(turns))
    assert summary["data_sets"]["sft/train"]["answer_format"] == str(answer_format)


def test_pairs_are_two_documents_with_the_whole_prompt(tmp_path: Path, template: ChatTemplate) -> None:
    prompt = [
        user([speech(1, seed=1, transcript="two")]),
        assistant("four"),
        user([speech(1, seed=2, transcript="six")]),
    ]
    first = {"prompt": prompt, "chosen": said("four", 2), "rejected": assistant("blue")}
    same_words = pair(said("four", 1), said("four", 2))
    path = write_lines(tmp_path / "pairs.jsonl", first, same_words)
    config = of_codes(tmp_path, conversation(), sft={}, preference={"train": (path,)})
    summary = prepare(config)
    asked = [Turn("human", ("two",)), Turn("assistant", ("four",)), Turn("human", (ids(template, 1, 2),))]
    question = [Turn("human", ("what is two plus two",))]
    expected = [
        [*asked, Turn("assistant", ("four", ids(template, 2)))],
        [*asked, Turn("assistant", ("blue",))],
        [*question, Turn("assistant", ("four", ids(template, 1)))],
        [*question, Turn("assistant", ("four", ids(template, 2)))],
    ]
    assert written(config.output / "preference/train") == listed(*map(template.encode, expected))
    counts = summary["data_sets"]["preference/train"]
    assert (counts["kind"], counts["pairs"], counts["documents"], counts["pairs_of_same_text"]) == (
        "preference",
        2,
        4,
        1,
    )
    record = json.loads((config.output / "preference/train.json").read_text())
    assert record["kind"] == "preference" and record["pairs"] == 2


def test_a_pair_that_is_the_same_only_in_tokens(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "pairs.jsonl", pair("that makes four", "that  makes four"), pair())
    config = of_codes(tmp_path, conversation(), sft={}, preference={"train": (path,)})
    counts = prepare(config)["data_sets"]["preference/train"]
    assert (counts["pairs"], counts["rejects"]) == (1, {"identical halves": 1})


BAD_LINES = (
    '{"messages": [{"role": "user"',
    {"messages": [user("x"), assistant("y"), user("z")]},
    conversation([{"type": "audio", "codes": [1, 2, 3]}]),
    conversation([{"type": "audio", "codes": [1, 2, 3000, 3000, 6000]}]),
    conversation([{"type": "audio", "path": "missing.wav"}]),
    pair(),
)
BAD_PROBLEMS = ["not JSON", "no final answer", "incomplete group", "codes out of range", "missing audio", "wrong kind"]


def test_bad_records_are_set_aside_and_counted(tmp_path: Path) -> None:
    config = of_codes(tmp_path, conversation(), *BAD_LINES, conversation(said("x", 30)), conversation(), max_tokens=60)
    summary = prepare(config)
    counts = summary["data_sets"]["sft/train"]
    assert summary["rejected"] == counts["rejected"] == 6
    assert (counts["records"], counts["documents"], counts["left_out"]) == (9, 2, 1)
    assert counts["rejects"] == Counter(BAD_PROBLEMS)
    rejects = [json.loads(line) for line in (config.output / "sft/train_rejects.jsonl").read_text().splitlines()]
    assert [reject["line"] for reject in rejects] == [2, 3, 4, 5, 6, 7]
    assert [reject["problem"] for reject in rejects] == BAD_PROBLEMS
    assert {reject["file"] for reject in rejects} == {str(tmp_path / "chat.jsonl")} and all(
        r["reason"] for r in rejects
    )
    assert prepare(config) == summary, "a second run finds the same"


def test_text_that_the_model_cannot_read(tmp_path: Path) -> None:
    config = of_codes(tmp_path, conversation("\u200b"), conversation("100 %"), conversation())
    counts = prepare(config)["data_sets"]["sft/train"]
    assert counts["rejects"] == {"no place in the template": 1} and counts["unknown_tokens"] >= 2
    reject = json.loads((config.output / "sft/train_rejects.jsonl").read_text())
    assert reject["line"] == 1 and "the text '\\u200b' has no tokens in this text model" in reject["reason"]


def test_a_pair_is_left_out_whole(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "pairs.jsonl", pair(), pair("x", said("y", 30)), pair("a", "b"))
    config = of_codes(tmp_path, conversation(), sft={}, preference={"train": (path,)}, max_tokens=60)
    counts = prepare(config)["data_sets"]["preference/train"]
    assert (counts["records"], counts["pairs"], counts["documents"], counts["left_out"]) == (3, 2, 4, 1)


def test_strict_refuses_before_anything_is_written(tmp_path: Path) -> None:
    config = of_codes(tmp_path, conversation(), *BAD_LINES, strict=True)
    with pytest.raises(ValueError, match=r"strict: 6 bad records(.|\n)*chat.jsonl:2: not a JSON record"):
        ChatPreparation(config)
    assert not config.output.exists()


def test_nothing_that_can_be_used(tmp_path: Path) -> None:
    config = of_codes(tmp_path, *BAD_LINES, conversation(said("x", 30)), max_tokens=60)
    with pytest.raises(
        ValueError, match=r"sft/train: of 7 records none can be used: 6 are bad .*, 1 longer than max_t"
    ):
        prepare(config)
    assert not (config.output / "sft/train.idx").exists() and (config.output / "sft/train_rejects.jsonl").exists()


def test_an_unspoken_text_has_no_place_in_audio_only(tmp_path: Path) -> None:
    answer_format = AnswerFormat(layout="audio_only")
    unspoken = conversation([*said("that makes"), {"type": "text", "text": "four"}])
    config = of_codes(tmp_path, unspoken, conversation(), answer_format=answer_format)
    counts = prepare(config)["data_sets"]["sft/train"]
    assert (counts["documents"], counts["rejects"]) == (1, {"no place in the template": 1})
    with pytest.raises(ValueError, match="chat.jsonl:1: layout audio_only has no place for 'four'"):
        prepare(replace(config, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sft": {}}, "name at least one data set"),
        ({"loss_on": "all"}, "loss_on: all needs history: audio"),
        ({"loss_on": "all", "history": "audio", "sft": {}, "preference": {"a": ()}}, "no effect on preference pairs"),
        ({"shard": 2, "num_shards": 2}, "shard = 2: must lie in 0 … 1"),
        ({"num_shards": 0}, "at least 1"),
        ({"num_workers": -1}, "num_workers at least 0"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of_codes(tmp_path, conversation(), **settings)


def test_files_without_encoders(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tiny.speech(0, 2)[0], 16000)
    config = of_codes(tmp_path, conversation(question=[{"type": "audio", "path": "a.wav"}]))
    with pytest.raises(ValueError, match="linguistic.pt: no such file; tools/train_tokenizer.py makes"):
        ChatPreparation(config)


def test_the_data_sets_train(tmp_path: Path, template: ChatTemplate) -> None:
    config = of_codes(tmp_path, MANY_TURNS, conversation(said("four", 3)))
    prepare(config)
    data = DataConfig({str(config.output / "sft/train"): 1.0}, 128, "whole")
    sample = build_dataset(data, template.vocabulary, 4, seed=0)[3]
    assert sample["loss_mask"].sum() > 0 and not sample["loss_mask"][sample["document_ids"] < 0].any()


@pytest.fixture
def with_files(tmp_path: Path, tokenizer: Path) -> PrepareChatConfig:
    """Two data sets that name seven different audio files, one of them twice."""
    for index in range(7):
        soundfile.write(tmp_path / f"{index}.wav", tiny.speech(index, 2 + index % 3)[0], 16000, subtype="PCM_16")
    parts = [[{"type": "audio", "path": f"{index}.wav"}] for index in range(7)]
    chat = write_lines(tmp_path / "chat.jsonl", *(conversation("four", part) for part in parts[:5]))
    answers = ([{"type": "text", "text": text}, *parts[index]] for text, index in (("four", 5), ("blue", 6)))
    pairs = write_lines(tmp_path / "p.jsonl", {**pair(*answers), "prompt": [user(parts[0])]})
    return PrepareChatConfig(
        tokenizer=tokenizer,
        output=tmp_path / "out",
        sft={"train": (chat,)},
        preference={"train": (pairs,)},
        num_workers=0,
        files_per_block=2,
    )


def outcome(output: Path) -> dict[str, bytes]:
    """Every data set, byte by byte."""
    paths = [path for path in output.rglob("*") if path.suffix in (".bin", ".idx")]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def test_audio_files_are_tokenized_once_each(with_files: PrepareChatConfig, template: ChatTemplate) -> None:
    seen: list[int] = []
    preparation = ChatPreparation(with_files, seen.append)
    assert (preparation.num_audio, preparation.num_records) == (7, 6)
    assert seen == [5, 6]
    seen.clear()
    preparation.tokenize(seen.append)
    assert seen == [0, 2, 4, 6, 7]
    preparation.write()
    encoder = DualCodebookTokenizer.load(with_files.tokenizer)
    folder = with_files.output.parent

    def segment(index: int) -> AudioSegment:
        return AudioSegment(encoder.token_ids(encoder.encode(load_waveform(folder / f"{index}.wav"))))

    questions = [[Turn("human", (segment(index),)), Turn("assistant", ("four",))] for index in range(5)]
    assert written(with_files.output / "sft/train") == listed(*map(template.encode, questions))
    answers = [Turn("assistant", ("four", segment(5))), Turn("assistant", ("blue", segment(6)))]
    halves = [[Turn("human", (segment(0),)), answer] for answer in answers]
    assert written(with_files.output / "preference/train") == listed(*map(template.encode, halves))


def test_the_resampler_is_noted_where_audio_was_tokenized(with_files: PrepareChatConfig) -> None:
    prepare(with_files)
    assert record_of(with_files.output / "sft/train")["resampler"] == RESAMPLER


def test_shards_in_any_order_give_the_same_bytes(with_files: PrepareChatConfig) -> None:
    prepare(with_files)
    parts = replace(with_files, output=with_files.output.parent / "parts")
    for shard in (2, 0, 1):
        preparation = ChatPreparation(replace(parts, shard=shard, num_shards=3))
        assert preparation.num_audio == (3, 2, 2)[shard]
        preparation.tokenize()
        assert not list(parts.output.rglob("*.idx"))
    last, seen = ChatPreparation(parts), list[int]()
    last.tokenize(seen.append)
    assert seen == [7], "nothing is left to tokenize"
    last.write()
    assert outcome(parts.output) == outcome(with_files.output)


def test_the_last_step_does_what_a_lost_shard_left(with_files: PrepareChatConfig) -> None:
    prepare(with_files)
    parts = replace(with_files, output=with_files.output.parent / "parts")
    ChatPreparation(replace(parts, shard=0, num_shards=2)).tokenize()
    prepare(parts)
    assert outcome(parts.output) == outcome(with_files.output)


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(with_files: PrepareChatConfig) -> None:
    prepare(with_files)
    resumed = replace(with_files, output=with_files.output.parent / "resumed")

    def stop(done: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ChatPreparation(resumed).tokenize(stop)
    seen: list[int] = []
    preparation = ChatPreparation(resumed)
    preparation.tokenize(seen.append)
    assert seen == [4, 6, 7]
    preparation.write()
    assert outcome(resumed.output) == outcome(with_files.output)


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(with_files: PrepareChatConfig) -> None:
    prepare(with_files)
    two = replace(with_files, output=with_files.output.parent / "two", num_workers=2)
    prepare(two)
    assert outcome(two.output) == outcome(with_files.output)


def test_a_second_run_makes_nothing_anew(with_files: PrepareChatConfig) -> None:
    first = prepare(with_files)
    before = {path: path.stat().st_mtime_ns for path in with_files.output.rglob("*.*") if path.name != "summary.json"}
    assert prepare(with_files) == first
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_changed_is_made_anew(with_files: PrepareChatConfig, template: ChatTemplate) -> None:
    prepare(with_files)
    folder = with_files.output.parent
    before = {path: path.stat().st_mtime_ns for path in with_files.output.rglob("*.*")}
    shutil.copy(folder / "3.wav", folder / "6.wav")  # of the pairs only
    prepare(with_files)
    changed = {
        str(path.relative_to(with_files.output)) for path, time in before.items() if path.stat().st_mtime_ns != time
    }
    assert "preference/train.bin" in changed and "sft/train.bin" not in changed
    assert len(list((with_files.output / "audio/blocks").glob("*.npz"))) == 4 + 1
    rejected = Documents(with_files.output / "preference/train")[1].token_ids
    question = Documents(with_files.output / "sft/train")[3].token_ids
    audio = template.vocabulary.is_audio
    assert rejected[audio(rejected)].tolist()[-10:] == question[audio(question)].tolist()


def test_audio_that_cannot_be_tokenized_is_told_at_its_record(with_files: PrepareChatConfig) -> None:
    damaged = with_files.output.parent / "2.wav"
    samples, _ = soundfile.read(damaged)
    samples[100] = float("nan")
    soundfile.write(damaged, samples, 16000, subtype="FLOAT")
    counts = prepare(with_files)["data_sets"]["sft/train"]
    assert (counts["documents"], counts["rejects"]) == (4, {"unreadable audio": 1})
    (line,) = (with_files.output / "sft/train_rejects.jsonl").read_text().splitlines()
    reject = json.loads(line)
    assert (reject["file"], reject["line"]) == (str(with_files.output.parent / "chat.jsonl"), 3)
    assert f"{damaged}: holds NaN or infinite samples" in reject["reason"]
    with pytest.raises(ValueError, match=r"strict: 1 bad records(.|\n)*chat.jsonl:3: .*2.wav"):
        prepare(replace(with_files, strict=True))


def test_speech_that_becomes_text_is_not_tokenized(tmp_path: Path, tokenizer: Path) -> None:
    soundfile.write(tmp_path / "old.wav", tiny.speech(0, 2)[0], 16000)
    old = user([{"type": "audio", "path": "old.wav", "transcript": "two"}])
    path = write_lines(tmp_path / "c.jsonl", {"messages": [old, assistant("four"), user("six"), assistant("eight")]})
    config = PrepareChatConfig(tokenizer, tmp_path / "out", {"train": (path,)}, num_workers=0)
    assert ChatPreparation(config).num_audio == 0
    assert ChatPreparation(replace(config, history="audio")).num_audio == 1
