"""Resynthesis against its original: measures with known results, and the command as a user runs it."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron_aqaa.audio.io import load_waveform
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.manifest import read_recordings, select
from megatron_aqaa.evaluation.judge import SpokenAnswerJudge
from megatron_aqaa.evaluation.resynthesis import RecordingScore, ResynthesisTest, summarise
from megatron_aqaa.vocoder.token_vocoder import TokenVocoder
from tests.evaluation.test_phone_judge import write_judge
from tests.inference.tiny_run import make_run, make_speech

pytest.importorskip("pocketsphinx", reason="the judge needs the extra [eval]")
TOOL = Path(__file__).parents[2] / "tools" / "evaluate_vocoder.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("run"))
    make_speech(run)
    return run


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, run: Path) -> Callable[..., int]:
    def run_tool(*words: object) -> int:
        inputs = [run / "vocoder", run / "speech" / "manifest.jsonl", run / "tokens" / "audio"]
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, [*inputs, *words])])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOL), run_name="__main__")
        return int(stop.value.code or 0)

    return run_tool


def test_rates_are_over_words_and_pitch_over_voiced_recordings() -> None:
    score = summarise(
        [
            RecordingScore(3, 0, 1, 0.2, 1.0, 200.0, 204.0, 0.1, 6, 1, 2),
            RecordingScore(1, 1, 1, 0.4, 0.8, 100.0, 90.0, 0.3, 2, 0, 1),
            RecordingScore(4, 0, 0, 0.6, 0.6, 0.0, 120.0, 0.2, 2, 0, 0),
        ]
    )
    assert (score.original_phone_error, score.phone_error) == (0.1, 0.3)
    assert (score.recordings, score.original_wer, score.wer, score.f0_within) == (3, 1 / 8, 2 / 8, 0.5)
    measured = [score.log_mel_l1, score.variance_ratio, score.f0_error, score.voicing_error]
    assert measured == pytest.approx([0.4, 0.8, 0.06, 0.2])
    assert "wer                  0.2500" in score.table()


class Parrot(TokenVocoder):
    """Says what it was given, whatever the tokens."""

    waveform: torch.Tensor

    def synthesize(self, *_: object) -> torch.Tensor:
        return self.waveform


def test_a_perfect_vocoder_has_no_errors_and_a_higher_voice_is_noticed(run: Path) -> None:
    recordings = select(read_recordings(run / "speech" / "manifest.jsonl"), "validation", ("assistant",))[:1]
    vocoder = Parrot.load(run / "vocoder")
    test = ResynthesisTest(vocoder, Documents(run / "tokens" / "audio"), SpokenAnswerJudge(["it is blue"]))
    original = load_waveform(recordings[0].audio, 16_000)
    vocoder.waveform = original
    perfect = test.score(recordings)
    assert (perfect.log_mel_l1, perfect.f0_error, perfect.f0_within, perfect.voicing_error) == (0, 0, 1, 0)
    assert perfect.wer == perfect.original_wer
    vocoder.waveform = torch.arange(len(original)) % 80 / 80 - 0.5  # 200 Hz instead of 160
    higher = test.score(recordings)
    assert higher.f0_error == pytest.approx(0.25, abs=0.01) and higher.f0_within == 0
    assert higher.log_mel_l1 > 0.3


def test_the_command_prints_and_writes(call: Callable[..., int], tmp_path: Path, capsys) -> None:
    assert call("--limit", 4, "-o", tmp_path / "score.json") == 0
    score = json.loads((tmp_path / "score.json").read_text())
    assert score["recordings"] == 4 and score["log_mel_l1"] > 0
    assert f"log_mel_l1           {score['log_mel_l1']:.4f}" in capsys.readouterr().out


def test_a_phone_judge_hears_phones_and_words_in_any_order(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest = tmp_path / "manifest.jsonl"
    records = [json.loads(line) for line in (run / "speech" / "manifest.jsonl").read_text().splitlines()]
    for record in records:
        record |= {"audio": str(run / "speech" / record["audio"]), "phones": [[0.0, "_"], [0.1, "a"], [0.2, "s"]]}
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records))
    words = [run / "vocoder", manifest, run / "tokens" / "audio", "--limit", 3, "--judge", write_judge(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, words), "-o", str(tmp_path / "score.json")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name="__main__")
    score = json.loads((tmp_path / "score.json").read_text())
    assert not stop.value.code and score["recordings"] == 3
    assert score["phone_error"] > 0 and score["original_phone_error"] > 0  # an untrained judge hears nothing right


def test_mistakes_are_explained(call: Callable[..., int], capsys) -> None:
    assert call("--split", "none") == 2
    assert "split" in capsys.readouterr().err
