"""`tools/prepare_data.py` and `tools/inspect_dataset.py`, run as a user would."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import soundfile
import yaml

from megatron_aqaa.data.datasets import DataConfig, build_dataset
from megatron_aqaa.data.finished import finish, record_of
from megatron_aqaa.data.indexed import Documents, DocumentWriter, documents_exist
from megatron_aqaa.data.manifest import select
from megatron_aqaa.vocabulary import Vocabulary
from tests.data.tiny_corpus import Corpus, audio_hours, make_corpus, write_audio
from tests.inference.tiny_run import make_run

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def config(corpus: Corpus, tmp_path: Path) -> Path:
    settings = {
        "manifest": str(corpus.directory / "manifest.jsonl"),
        "audio": str(corpus.directory / "audio"),
        "text_model": str(corpus.directory / "text.model"),
        "vocabulary": str(corpus.directory / "vocabulary.yaml"),
        "output": str(tmp_path / "data"),
        "pretraining": {"asr": ["user", "assistant"], "tts": ["assistant"]},
        "conversations": {"answer": 0.75, "asr": 0.25},
        "held_out": ["validation"],
        "num_takes": 2,
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "data.yaml"


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> int:
    """Exit code of a tool."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOLS / name), run_name="__main__")
    return int(stop.value.code or 0)


def read_summary(config: Path) -> dict[str, dict[str, int]]:
    """Counts of every data set."""
    return json.loads((config.parent / "data/summary.json").read_text())["data_sets"]


def test_counts_are_those_of_the_files(
    corpus: Corpus, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "prepare_data.py", config) == 0
    output = config.parent / "data"
    summary = read_summary(config)
    assert {name: counts["documents"] for name, counts in summary.items()} == {
        "pretraining/train/asr": 20,
        "pretraining/train/tts": 12,
        "sft/train": 16 + 5,
        "pretraining/validation/asr": 4,
        "pretraining/validation/tts": 0,
        "sft/validation": 4 + 1,
    }
    for name, counts in summary.items():
        if counts["documents"]:
            documents = Documents(output / name)
            assert counts["tokens"] == documents.lengths.sum() == counts["text_tokens"] + counts["audio_tokens"]
            starts = (document.token_ids == corpus.vocabulary.audio_start for document in documents)
            assert counts["segments"] == sum(int(start.sum()) for start in starts)
            assert counts["targets"] == sum(int(document.loss_mask[1:].sum()) for document in documents)
    hours = audio_hours(select(corpus.recordings, "train"))
    assert summary["pretraining/train/asr"]["audio_hours"] == pytest.approx(hours, abs=1e-3)
    assert (Documents(output / "sft/train").mask is None, Documents(output / "pretraining/train/asr").mask) == (
        False,
        None,
    )
    printed = capsys.readouterr().out
    assert "sft/train" in printed and str(output / "summary.json") in printed


def test_the_data_sets_train(config: Path, monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    run(monkeypatch, "prepare_data.py", config)
    data = config.parent / "data"
    blend = {str(data / "pretraining/train" / task): 1.0 for task in ("asr", "tts")}
    for settings in (DataConfig(blend, 64), DataConfig({str(data / "sft/train"): 1.0}, 128, "whole")):
        sample = build_dataset(settings, corpus.vocabulary, 8, seed=0)[7]
        assert sample["loss_mask"].sum() > 0


def test_a_second_run_keeps_what_is_finished(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "prepare_data.py", config)
    data = config.parent / "data"
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*.bin")}
    (data / "sft/train.json").unlink()  # as if the first run had been killed before it wrote the counts
    os.truncate(data / "sft/train.bin", 10)
    run(monkeypatch, "prepare_data.py", config)
    after = {path: path.stat().st_mtime_ns for path in data.rglob("*.bin")}
    assert {path.name for path in before if before[path] != after[path]} == {"train.bin", "train_mask.bin"}
    assert len(Documents(data / "sft/train")) == 21


def test_other_settings_make_the_data_anew(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "prepare_data.py", config)
    assert run(monkeypatch, "prepare_data.py", config, "num_takes=1", "pretraining={tts: []}") == 0
    assert len(Documents(config.parent / "data/sft/train")) == 8 + 3
    assert not documents_exist(config.parent / "data/pretraining/train/tts")


def test_long_conversations_are_left_out_and_counted(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "prepare_data.py", config)
    lengths = Documents(config.parent / "data/sft/train").lengths
    limit = int(sorted(lengths)[10])
    run(monkeypatch, "prepare_data.py", config, f"max_tokens={limit}")
    counts = read_summary(config)["sft/train"]
    assert counts["left_out"] == (lengths > limit).sum() > 0
    assert counts["documents"] + counts["left_out"] == 21 and counts["longest"] == limit


def plain_manifest(corpus: Corpus, directory: Path, spoken: int) -> Path:
    """The corpus as somebody has it who knows neither roles nor splits, and the words of some recordings only."""
    lines = [
        json.dumps({"audio": f"{r.line}.wav", **({"text": r.text} if r.line < spoken else {})})
        for r in corpus.recordings
    ]
    (directory / "plain.jsonl").write_text("\n".join(lines) + "\n")
    return directory / "plain.jsonl"


def plain_config(config: Path, manifest: Path) -> Path:
    """Settings that name nothing but files."""
    settings = yaml.safe_load(config.read_text())
    kept = {name: settings[name] for name in ("audio", "text_model", "vocabulary", "output")}
    config.write_text(yaml.safe_dump({**kept, "manifest": str(manifest)}))
    return config


def test_a_manifest_of_audio_and_text_alone_gives_every_mix(
    corpus: Corpus, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = plain_config(config, plain_manifest(corpus, config.parent, 20))
    assert run(monkeypatch, "prepare_data.py", plain) == 0
    summary = read_summary(config)
    num_texts = len({r.text for r in corpus.recordings[:20]})
    counts = {"continuation": (24, 0), "asr": (20, 4), "tts": (20, 4), "interleaved": (20, 4), "text": (num_texts, 4)}
    assert {name: (found["documents"], found["without_text"]) for name, found in summary.items()} == {
        f"pretraining/train/{task}": count for task, count in counts.items()
    }
    assert json.loads((config.parent / "data/summary.json").read_text())["impossible"] == {}
    assert "no documents" not in capsys.readouterr().out


def test_mixes_that_need_words_are_told_where_there_are_none(
    corpus: Corpus, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = plain_config(config, plain_manifest(corpus, config.parent, 0))
    assert run(monkeypatch, "prepare_data.py", plain) == 0
    printed = capsys.readouterr().out
    for task in ("asr", "tts", "interleaved", "text"):
        assert f"train/{task}: no documents: none of the 24 recordings has a text, which {task} needs" in printed
        assert not documents_exist(config.parent / "data/pretraining/train" / task)
    assert len(Documents(config.parent / "data/pretraining/train/continuation")) == 24


def test_what_the_recordings_came_through_is_noted_for_inference(
    corpus: Corpus, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(corpus.directory / "audio", "digest", {"documents": 24, "resampler": "a resampler"})
    run(monkeypatch, "prepare_data.py", config)
    (corpus.directory / "audio.json").unlink()
    assert record_of(config.parent / "data/sft/train")["resampler"] == "a resampler"
    assert record_of(config.parent / "data/pretraining/train/asr")["resampler"] == "a resampler"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("manifest=nowhere.jsonl", "nowhere.jsonl: no such manifest"),
        ("audio=nowhere", "nowhere.idx: no such file; run"),
        ("text_model=nowhere", "nowhere: no such text model"),
        ("vocabulary=nowhere", "nowhere: no such vocabulary"),
        ("pretraining={ars: [user]}", "unknown pre-training task 'ars'"),
        ("pretraining={asr: [robot]}", "pretraining.asr"),
        ("conversations={sing: 1}", "unknown conversation task 'sing'"),
        ("held_out=[valid]", "no recordings in the split 'valid'; splits: train, validation"),
        ("num_take=2", "unknown key num_take; did you mean num_takes?"),
    ],
)
def test_wrong_settings_are_named_and_nothing_is_written(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert run(monkeypatch, "prepare_data.py", config, override) == 2
    assert message in capsys.readouterr().err
    assert not (config.parent / "data").exists()


def test_rejected_recordings_are_left_out_and_counted(
    corpus: Corpus, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = Documents(corpus.directory / "audio")
    with DocumentWriter(config.parent / "audio", corpus.vocabulary) as writer:
        for index, document in enumerate(documents):
            writer.add([corpus.vocabulary.pad] if index in (0, 13) else document.token_ids)
    assert run(monkeypatch, "prepare_data.py", config, f"audio={config.parent / 'audio'}") == 0
    assert "2 rejected recordings left out" in capsys.readouterr().out
    summary = read_summary(config)
    assert summary["pretraining/train/asr"]["documents"] == 18
    assert summary["pretraining/train/tts"]["documents"] == 11


def test_a_manifest_of_other_tokens_is_refused(
    corpus: Corpus, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shorter = config.parent / "manifest.jsonl"
    lines = (corpus.directory / "manifest.jsonl").read_text().splitlines(keepends=True)
    shorter.write_text("".join(lines[:-1]))
    assert run(monkeypatch, "prepare_data.py", config, f"manifest={shorter}") == 2
    assert "has 24 recordings" in capsys.readouterr().err


def test_the_example_is_a_valid_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where the speech is not: the only thing that is wrong
    assert run(monkeypatch, "prepare_data.py", TOOLS.parent / "examples/tiny_cpu/data.yaml") == 2
    assert "runs/demo/speech/manifest.jsonl: no such manifest" in capsys.readouterr().err


def test_inspect_shows_text_groups_and_targets(
    corpus: Corpus, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "prepare_data.py", config)
    capsys.readouterr()
    prefix = config.parent / "data/sft/train"
    assert run(monkeypatch, "inspect_dataset.py", prefix, "--tokenizer", corpus.directory, "--count", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    document = Documents(prefix)[0]
    assert lines[0] == f"record 0 of 21: {len(document.token_ids)} tokens, {document.loss_mask.sum()} targets"
    assert "<|BOT|>human\\n<audio_start>" in lines[1] and lines[1].startswith(" ")
    first_group = document.token_ids[3:8] - corpus.vocabulary.linguistic_start
    assert " ".join(f"<audio_{code}>" for code in first_group) + " | " in lines[2]
    assert any(line.startswith("*") and "the opposite" in line for line in lines)
    assert run(monkeypatch, "inspect_dataset.py", corpus.directory / "audio", "--tokenizer", corpus.directory) == 0
    assert "record 2 of 24" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "nowhere.idx: no such file"), (["{audio}", "--index", 24], "has records 0 … 23, not 24")],
)
def test_inspect_names_what_is_wrong(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list, message: str
) -> None:
    arguments = [str(corpus.directory / "audio") if argument == "{audio}" else argument for argument in arguments]
    assert run(monkeypatch, "inspect_dataset.py", *arguments, "--tokenizer", corpus.directory) == 2
    assert message in capsys.readouterr().err


def test_inspect_speaks_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_directory = make_run(tmp_path / "run")
    tokenizer, heard = run_directory / "tokenizer", tmp_path / "heard"
    write_audio(tmp_path / "audio", Vocabulary.load(tokenizer / "vocabulary.yaml"), 3)
    options = ("--tokenizer", tokenizer, "--vocoder", run_directory, "-o", heard, "--index", 1)
    assert run(monkeypatch, "inspect_dataset.py", tmp_path / "audio", *options) == 0
    printed = capsys.readouterr().out
    assert f"{heard}/record_1.wav: 0.60 s" in printed and f"{heard}/record_2.wav: 0.72 s" in printed
    assert sorted(path.name for path in heard.iterdir()) == ["record_1.wav", "record_2.wav"]
    assert soundfile.info(heard / "record_2.wav").duration == pytest.approx(0.72)
    assert run(monkeypatch, "inspect_dataset.py", tmp_path / "audio", *options[:2], "--vocoder", tmp_path) == 2
    assert "inspect_dataset: " in capsys.readouterr().err
