"""`tools/train_vocoder.py` and `tools/vocode.py`, run as a user would: both halves for a few steps, then speak."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import yaml

from megatron_aqaa.config import load_config
from megatron_aqaa.data.audio_tokens import TokenizeConfig, tokenize_manifest
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.training.speech_models.vocoder_jobs import AcousticTrainConfig, GeneratorTrainConfig
from tests.tokenizer.tiny import write_corpus, write_tokenizer

ROOT = Path(__file__).parents[2]
Tool = Callable[..., int]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with speech, tokenizer, tokens and the two configurations."""
    run = tmp_path_factory.mktemp("run")
    manifest = write_corpus(run / "speech", 8)
    (run / "tokenizer").mkdir()
    write_tokenizer(run / "tokenizer")
    tokenize_manifest(TokenizeConfig(manifest, run / "tokenizer", run / "tokens", num_workers=0))
    shared = {
        "speech": {"manifest": str(manifest), "role": "user"},
        "held_out": "unseen_voice",
        "batch_size": 2,
        "crop_groups": 3,
        "tensorboard": True,
        "fit": {
            **{"steps": 4, "warmup_steps": 1, "checkpoint_interval": 2, "log_interval": 1, "ema_decay": 0.9},
            "validation_interval": 3,
        },
    }
    generator = {"model": {"hidden_size": 16, "inner_size": 32, "num_blocks": 1}}
    acoustic = {
        "tokens": str(run / "tokens" / "audio"),
        "tokenizer": str(run / "tokenizer"),
        "model": {"hidden_size": 16, "num_condition_blocks": 1, "num_flow_blocks": 2},
    }
    for name, settings in (("generator", generator), ("acoustic", acoustic)):
        content = shared | settings | {"output": str(run / "vocoder" / name)}
        (run / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return run


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Tool:
    def run_tool(name: str, *words: object) -> int:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
        return int(stop.value.code or 0)

    return run_tool


@pytest.fixture
def trained(run: Path, call: Tool) -> Path:
    """The vocoder; trained once, later calls find it finished."""
    for name in ("generator", "acoustic"):
        assert call("train_vocoder", name, run / f"{name}.yaml") == 0
    return run / "vocoder"


def test_writes_models_logs_and_reports(trained: Path, call: Tool) -> None:
    generator = json.loads((trained / "generator" / "report.json").read_text())
    acoustic = json.loads((trained / "acoustic" / "report.json").read_text())
    assert generator.keys() == {"mel_l1", "stft"}
    assert acoustic.keys() == {"mel_l1_mean", "mel_l1_drawn", "variance_ratio", "f0_error", "voicing_error"}
    for name, report in (("generator", generator), ("acoustic", acoustic)):
        records = [json.loads(line) for line in (trained / name / "log.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records] == [1, 2, 3, 3, 4, 4]  # validated after 3 and 4
        assert {key: records[-1][key] for key in report} == pytest.approx(report)
    assert (trained / "acoustic" / "vocabulary.yaml").exists()
    assert load_config(GeneratorTrainConfig, trained / "generator" / "config.yaml").model.hidden_size == 16


def test_validations_are_heard_and_seen(trained: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for name, made in (("generator", "generated"), ("acoustic", "drawn")):
        board = accumulator.EventAccumulator(str(trained / name / "tensorboard"), {"images": 0, "audio": 0}).Reload()
        for shown in (f"recording 0 {made}", "recording 1 natural"):
            assert {event.step for event in board.Audio(shown)} == {3, 4}
            assert {event.step for event in board.Images(f"{shown} mel")} == {3, 4}
            assert {event.step for event in board.Images(f"{shown} spectrogram")} == {3, 4}


def test_speaks_a_record(
    trained: Path, run: Path, call: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [trained, "--tokens", run / "tokens" / "audio", "--record", 2, "-o"]
    assert call("vocode", *words, tmp_path / "a.wav") == 0
    assert "a.wav: 0.72 s of speech" in capsys.readouterr().out
    assert soundfile.info(tmp_path / "a.wav").frames == 6 * 1920
    assert call("vocode", *words, tmp_path / "b.wav") == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert call("vocode", *words, tmp_path / "c.wav", "--seed", 1) == 0
    assert (tmp_path / "a.wav").read_bytes() != (tmp_path / "c.wav").read_bytes()


def test_speaks_ids_whole_and_in_chunks(trained: Path, run: Path, call: Tool, tmp_path: Path) -> None:
    ids = Documents(run / "tokens" / "audio")[4].token_ids
    (tmp_path / "ids.txt").write_text(", ".join(map(str, ids)))
    for name, *more in (("whole", "--steps", 0), ("chunks", "--stream")):
        assert call("vocode", trained, "--ids", tmp_path / "ids.txt", "-o", tmp_path / f"{name}.wav", *more) == 0
        assert soundfile.info(tmp_path / f"{name}.wav").frames == len(ids) // 5 * 1920


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_speaks_malformed_ids_and_says_so(
    trained: Path, run: Path, call: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str], stream: tuple[str, ...]
) -> None:
    ids = Documents(run / "tokens" / "audio")[4].token_ids.tolist()
    (tmp_path / "ids.txt").write_text(" ".join(map(str, [*ids[:5], 3, *ids[5:12], *ids[13:], -7, ids[0]])))
    words = (trained, "--ids", tmp_path / "ids.txt", "-o", tmp_path / "a.wav", *stream)
    assert call("vocode", *words) == 1
    assert soundfile.info(tmp_path / "a.wav").frames == (len(ids) // 5 - 1) * 1920
    reports = capsys.readouterr().err.splitlines()
    assert reports[0] == "vocode: position 5: id 3 is no audio token; dropped 1 id"
    assert reports[-1] == "vocode: 4 faults in the order of groups were repaired"
    assert call("vocode", *words, "--strict") == 2
    assert "vocode: position 5: id 3 is no audio token" in capsys.readouterr().err


def test_nothing_whole_is_said_and_no_sound(trained: Path, call: Tool, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("1 2 3")
    for words in ((), ("--stream",)):
        assert call("vocode", trained, "--ids", tmp_path / "ids.txt", "-o", tmp_path / "a.wav", *words) == 1
        assert soundfile.info(tmp_path / "a.wav").frames == 0


def test_mistakes_are_explained(
    trained: Path, run: Path, call: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_text("41 42 hello")
    for words, message in (
        (("train_vocoder", "generator", run / "none.yaml"), "no such configuration file"),
        (("train_vocoder", "generator", run / "generator.yaml", "fit.step=3"), "did you mean fit.steps?"),
        (("train_vocoder", "acoustic", run / "acoustic.yaml", "tokenizer=nowhere"), "no such vocabulary file"),
        (("vocode", run, "--ids", "-", "-o", "a.wav"), "acoustic/model.pt: no such file"),
        (("vocode", trained, "--ids", tmp_path / "ids.txt", "-o", "a.wav"), "'hello' is not a token id"),
        (("vocode", trained, "--tokens", run / "tokens" / "audio", "--record", 99, "-o", "a.wav"), "no record 99"),
        (
            ("vocode", trained, "--ids", "-", "-o", "a.wav", "--prompt-audio", "b.wav", "--prompt-ids", "b.txt"),
            "the miniature vocoder takes no voice prompt",
        ),
    ):
        assert call(*words) == 2
        assert message in capsys.readouterr().err


def test_the_examples_are_valid() -> None:
    generator = load_config(GeneratorTrainConfig, ROOT / "examples/tiny_cpu/generator.yaml")
    acoustic = load_config(AcousticTrainConfig, ROOT / "examples/tiny_cpu/acoustic.yaml")
    assert generator.output.parent == acoustic.output.parent  # the vocoder directory holds both
