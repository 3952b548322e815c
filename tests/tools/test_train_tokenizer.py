"""`tools/extract_features.py`, `train_tokenizer.py` and `tokenize_audio.py`, run as a user would."""

from __future__ import annotations

import io
import json
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.tokenizer.dual_codebook import DualCodebookTokenizer
from megatron_aqaa.tokenizer.text import TextTokenizer
from tests.tokenizer.tiny import write_corpus

ROOT = Path(__file__).parents[2]
NETWORK = {"encoder": {"width": 16, "num_heads": 2, "kernel_size": 3}, "num_layers": 1}
FIT = {"steps": 40, "learning_rate": 0.01, "warmup_steps": 5, "checkpoint_interval": 20, "log_interval": 20}


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> int:
    """Exit code of a tool."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
    return int(stop.value.code or 0)


def write_config(directory: Path, name: str, **settings: object) -> Path:
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Configuration files of all stages; a corpus of 32 utterances."""
    run_directory = tmp_path_factory.mktemp("run")
    manifest = str(write_corpus(run_directory / "speech", 32, num_groups=25))
    features, tokenizer, tokens = (str(run_directory / name) for name in ("features", "tokenizer", "tokens"))
    speech = {"features": features, "output": tokenizer, "fit": FIT, "batch_size": 8}
    kmeans = {"num_clusters": 1024, "steps": 3, "batch_size": 1024}
    tokenize = {"manifest": manifest, "tokenizer": tokenizer, "output": tokens, "num_workers": 0}
    stages = {
        "features": {"manifest": manifest, "output": features, "num_workers": 0},
        "text": {"manifest": manifest, "output": tokenizer, "model": {"size": 40}},
        "linguistic": speech | {"model": NETWORK, "kmeans": kmeans},
        "semantic": speech | {"model": NETWORK | {"num_layers_after": 1}},
        "tokens": tokenize,
    }
    return {name: write_config(run_directory, name, **settings) for name, settings in stages.items()}


@pytest.fixture(scope="module")
def trained(configs: dict[str, Path]) -> tuple[dict[str, Path], str]:
    """The same files after every stage has run, and what the stages printed. Each test asks for what it needs, so that
    any of them runs alone, or first."""
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(shown):
        assert run(monkeypatch, "extract_features.py", configs["features"]) == 0
        for part in ("text", "linguistic", "semantic"):
            assert run(monkeypatch, "train_tokenizer.py", part, configs[part]) == 0
        assert run(monkeypatch, "tokenize_audio.py", configs["tokens"]) == 0
    return configs, shown.getvalue()


def test_the_whole_way_from_speech_to_tokens(trained: tuple[dict[str, Path], str]) -> None:
    configs, shown = trained
    root = configs["text"].parent
    names = ("phone_error", "phone_error_of_codes", "codes_used", "code_phone_accuracy", "pitch_error_semitones")
    for score in (*names, "code → phone"):
        assert score in shown
    for name in ("linguistic", "semantic"):
        assert (root / "tokenizer" / name / "codebook.png").stat().st_size > 5000
        scores = json.loads((root / "tokenizer" / name / "scores.json").read_text())
        assert scores["phone_error"] < 0.9  # forty steps on tones; untrained it is about 1
        log = [json.loads(line) for line in (root / "tokenizer" / name / "log.jsonl").read_text().splitlines()]
        assert [record["step"] for record in log] == [20, 40] and log[1]["loss"] < log[0]["loss"]
    tokenizer = DualCodebookTokenizer.load(root / "tokenizer")
    assert tokenizer.vocabulary == TextTokenizer(root / "tokenizer/text.model").vocabulary()
    documents = Documents(root / "tokens/audio")
    assert len(documents) == 32
    assert len(tokenizer.codes(documents[0].token_ids).semantic) == 3 * 25


def test_a_finished_training_is_not_repeated(
    trained: tuple[dict[str, Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configs, _ = trained
    weights = configs["text"].parent / "tokenizer/semantic.pt"
    before = DualCodebookTokenizer.load(weights.parent).semantic_encoder.body.first.product.weight.clone()
    assert run(monkeypatch, "train_tokenizer.py", "semantic", configs["semantic"]) == 0
    assert DualCodebookTokenizer.load(weights.parent).semantic_encoder.body.first.product.weight.equal(before)


def test_rejected_recordings_show_in_the_exit_code(
    trained: tuple[dict[str, Path], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    configs, _ = trained
    manifest = tmp_path / "manifest.jsonl"
    speech = configs["text"].parent / "speech"
    manifest.write_text(json.dumps({"audio": str(speech / "wav/0.wav")}) + '\n{"audio": "none.wav"}\n')
    overrides = (f"manifest={manifest}", f"output={tmp_path / 'tokens'}")
    assert run(monkeypatch, "tokenize_audio.py", configs["tokens"], *overrides) == 1
    assert "1 of 2 recordings rejected" in capsys.readouterr().err
    assert "none.wav: no such file" in (tmp_path / "tokens/rejects.jsonl").read_text()


@pytest.mark.parametrize(
    ("tool", "arguments", "problem"),
    [
        ("extract_features.py", ["features", "manifest=none.jsonl"], "none.jsonl: no such manifest"),
        ("train_tokenizer.py", ["text", "text", "manifest=none.jsonl"], "none.jsonl: no such manifest"),
        ("train_tokenizer.py", ["linguistic", "linguistic", "features=none"], "none/index.json: no finished features"),
        (
            "train_tokenizer.py",
            ["linguistic", "linguistic", "held_out=[never]"],
            "no utterance of the splits ('never',)",
        ),
        (
            "train_tokenizer.py",
            ["semantic", "semantic", "fit.stepz=3"],
            "unknown key fit.stepz; did you mean fit.steps?",
        ),
        ("tokenize_audio.py", ["tokens", "tokenizer=none"], "no such file; tools/train_tokenizer.py makes"),
    ],
)
def test_what_is_wrong_is_said(
    trained: tuple[dict[str, Path], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tool: str,
    arguments: list[str],
    problem: str,
) -> None:
    configs, _ = trained
    *part, name, override = arguments
    assert run(monkeypatch, tool, *part, configs[name], override) == 2
    assert problem in capsys.readouterr().err
