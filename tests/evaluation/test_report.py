"""The report shows what a run holds, says what it lacks, and needs no second file."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("matplotlib", reason="the report needs the extra [demo]")
pytest.importorskip("jinja2", reason="the report needs the extra [demo]")

from megatron_aqaa.evaluation import charts
from megatron_aqaa.evaluation.judged import JudgedAnswer, save_judged
from megatron_aqaa.evaluation.report import write_report
from megatron_aqaa.evaluation.scores import ScoreCard

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Collects elements, and checks that every one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with three judged answers, scores, logs, codes and timings."""
    for folder in ("speech", "evaluation", "pretrain", "sft", "tokens", "stages"):
        (tmp_path / folder).mkdir()
    tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(16000) / 16000)
    soundfile.write(tmp_path / "speech" / "question.wav", tone, 16000)
    soundfile.write(tmp_path / "evaluation" / "answer.wav", tone[:8000], 16000)
    answers = [_answer(0, "it is blue", "it is blue"), _answer(1, "it is <red>", "it is blue"), _answer(2, "", "")]
    save_judged(answers, tmp_path / "evaluation" / "samples.jsonl")
    card = ScoreCard().with_outcomes({"text_unseen_voice": [True] * 97 + [False] * 3, "heard": [True, False]})
    card.save(tmp_path / "evaluation" / "scores.json")
    log = [{"step": s, "loss_text": 3 / s, "loss_linguistic": 4 / s, "loss_semantic": 5 / s} for s in range(1, 60)]
    for stage in ("pretrain", "sft"):
        (tmp_path / stage / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log) + '{"step": 60, "lo')
    codes = {
        "linguistic": {"counts": [4, 4, 0, 0], "phone_accuracy": {"unseen_voice": 0.906}},
        "semantic": {"counts": [1] * 16},
    }
    (tmp_path / "tokens" / "report.json").write_text(json.dumps(codes))
    speed = {"first_word_s": 0.05, "first_sound_s": 0.45, "real_time_factor": 0.6, "n": 5}
    (tmp_path / "evaluation" / "speed.json").write_text(json.dumps(speed))
    (tmp_path / "stages" / "sft.json").write_text(json.dumps({"name": "sft", "seconds": 421.0, "status": "finished"}))
    return tmp_path


def _answer(number: int, written: str, heard: str) -> JudgedAnswer:
    paths = {"question_audio": "speech/question.wav", "answer_audio": "evaluation/answer.wav"}
    words = {"question": f"question {number}", "expected": "it is blue", "written": written, "heard": heard}
    sound = {"duration_s": 0.5, "pitch_hz": 220.0, "style_followed": None}
    return JudgedAnswer(number, "unseen_voice", "neutral", "klatt3", **words, **sound, **paths)


def test_page_is_whole_and_self_contained(run: Path) -> None:
    text = write_report(run).read_text()
    page = Page(text)
    sources = [a["src"] for tag in ("img", "audio", "script") for a in page.all(tag) if "src" in a]
    assert sources
    assert all(source and source.startswith("data:") for source in sources)
    assert page.all("link") == []
    assert all(a["href"].startswith("#") for a in page.all("use"))  # pieces of pictures, on this page
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "url(#" not in text or all(f'id="{name}"' in text for name in re.findall(r"url\(#(\w+)\)", text))


def test_players_carry_the_very_files(run: Path) -> None:
    players = Page(write_report(run).read_text()).all("audio")
    assert len(players) == 6  # three answers, question and answer each
    content = [base64.b64decode(player["src"].split(",")[1]) for player in players[:2]]
    assert content == [(run / name).read_bytes() for name in ("speech/question.wav", "evaluation/answer.wav")]


def test_scores_texts_and_timings_are_shown(run: Path) -> None:
    text = write_report(run).read_text()
    assert "97.0<small> ± 1.9 %" in text  # (97 + 1) / (100 + 2), n = 100
    assert "it is &lt;red&gt;" in text
    assert "<red>" not in text
    assert text.count('<dd class="right">') == 3
    assert text.count('<dd class="wrong">') == 3
    assert "2 of 4 codes used · perplexity 2" in text
    assert "16 of 16 codes used · perplexity 16" in text
    assert "90.6&nbsp;% of the codes tell the phone" in text
    assert "7 min 1 s" in text
    assert "0.45 s" in text
    assert "0.60 × its duration" in text


def test_two_stages_become_one_curve(run: Path) -> None:
    text = write_report(run).read_text()
    assert text.count("SFT on spoken answers begins") == 1
    assert all(f">{label}</text>" in text for label in ("text", "linguistic", "semantic"))


def test_stages_stand_side_by_side(run: Path) -> None:
    assert "Stages of post-training: not measured" in write_report(run).read_text()
    for folder, right, rating in (("comparison/sft", 80, 0.0), ("comparison/dpo", 90, 7.0)):
        (run / folder).mkdir(parents=True)
        outcomes = {"text_unseen_voice": [True] * right + [False] * (100 - right)}
        ScoreCard().with_outcomes(outcomes).save(run / folder / "scores.json")
        (run / folder / "ratings.json").write_text(json.dumps({"1": [rating], "2": [7.0]}))
    text = write_report(run).read_text()
    Page(text)
    assert all(f'<th class="number">{label}</th>' in text for label in ("SFT-1", "DPO", "merged"))
    row = text[text.index("Sampled answer preferred") :]
    assert "1 won 0 lost" in row[:300]
    assert "75.0" in row[: row.index("</tr>")]


def test_missing_parts_are_called_missing(tmp_path: Path) -> None:
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert page.all("audio") == []
    assert text.count("not measured") >= 4 + 1 + 1 + 5 + 1 + 1  # tiles, answers, scores, five logs, codes, timings
    assert not re.search(r"\d\.\d<small> ±", text)


def test_a_missing_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make demo"):
        write_report(tmp_path / "nowhere")


def test_long_curves_are_thinned_and_recoloured() -> None:
    steps = list(range(100_000))
    svg = charts.loss_chart({"text": (steps, [1.0] * len(steps))}, {"text": "text"})
    assert len(svg) < 40_000
    assert "var(--text, #5b6f8f)" in svg
    assert 'style="font-size: 9px; font-family: inherit' in svg


def test_spectrogram_of_a_tone_is_one_line() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    png = base64.b64decode(charts.spectrogram(tone, "answer").split(",")[1])
    pixels = pytest.importorskip("matplotlib.image").imread(io.BytesIO(png))
    strength = pixels[:, 20:-20, 3].mean(1)
    brightest = int(strength.argmax())
    assert strength[brightest] > 0.9
    assert np.delete(strength, range(brightest - 6, brightest + 7)).max() < 0.3
    # 1 kHz lies 35 % up the mel scale to 8 kHz; row 0 is the top
    assert abs((len(strength) - 1 - brightest) / len(strength) - 0.352) < 0.03


def test_smoothing_keeps_a_line_and_its_ends() -> None:
    steps, values = charts._smoothed((list(range(1000)), [2.0 * step for step in range(1000)]))
    np.testing.assert_allclose(values, 2 * steps)
    assert (steps[0], steps[-1], len(steps)) == (0, 999, 240)


def test_corpus_counts_the_train_split_alone(run: Path) -> None:
    voices = (
        ("a", "user", "train"),
        ("b", "user", "train"),
        ("c", "user", "unseen_voice"),
        ("f2", "assistant", "train"),
    )
    records = [{"duration_s": 1800, "speaker": name, "role": role, "split": split} for name, role, split in voices]
    (run / "speech" / "manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert "on 1.5 hours of synthetic speech: 3 utterances, 2 asking voices" in write_report(run).read_text()
