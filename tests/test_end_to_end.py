"""The whole chain of `make demo`, with a few steps of everything: it runs to its report, and again does nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from megatron_aqaa.config import load_config
from megatron_aqaa.evaluation.comparison import load_stages
from megatron_aqaa.inference.answerer import SpokenAnswerer
from megatron_aqaa.training.chain import Chain
from megatron_aqaa.training.stages import ChainConfig, Stage

pytestmark = pytest.mark.distributed

FEW = ("num_questions=4", "num_free=2", "num_sampled=2", "max_new_tokens=40")
TINY = {
    "speech": ("num_train=150", "num_validation=6", "num_unseen_voice=6", "num_unseen_wording=6",
               "assistant.num_train_takes=1"),
    "linguistic": ("fit.steps=3", "max_scored=20", "kmeans_utterances=300"),
    "semantic": ("fit.steps=3", "max_scored=20"),
    "pretrain": ("training.steps=3", "optimizer.warmup_steps=1"),
    "sft": ("training.steps=4", "optimizer.warmup_steps=1"),
    "selection": ("num_conversations=40",),
    "sft2": ("training.steps=3", "optimizer.warmup_steps=1"),
    "dpo": ("training.steps=3", "optimizer.warmup_steps=1"),
    "compare_sft": FEW,
    "compare_sft2": FEW,
    "compare_dpo": FEW,
    "generator": ("fit.steps=3",),
    "acoustic": ("fit.steps=3",),
    "evaluate": ("--config", "examples/tiny_cpu/evaluate_quick.yaml", *FEW, "num_timed=1",
                 "num_spoken={unseen_voice: 2, unseen_wording: 2}", "pairs=data/held_out/preference/held_out"),
}  # fmt: skip
MADE_UP = {"pairs": "pairs.jsonl", "held_out_pairs": "held_out.jsonl"}  # this model is never right


@pytest.fixture(scope="module")
def chain_config() -> ChainConfig:
    config = load_config(ChainConfig, "examples/tiny_cpu/demo.yaml")
    assert TINY.keys() <= {stage.name for stage in config.stages}
    stages = [dataclasses.replace(stage, quick=TINY.get(stage.name, ())) for stage in config.stages]
    return ChainConfig(tuple(map(_with_made_up_pairs, stages)), config.cores)


def _with_made_up_pairs(stage: Stage) -> Stage:
    if stage.name not in MADE_UP:
        return stage
    command = ("python", "-m", "tests.made_up_pairs", "{run}", f"{{run}}/chat/{MADE_UP[stage.name]}")
    return dataclasses.replace(stage, command=command)


@pytest.fixture(scope="module")
def finished(chain_config: ChainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("end_to_end") / "run"
    Chain(chain_config, run, quick=True).run()
    return run


def test_report_is_written_with_players(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.count("<audio") >= 4
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_scores_are_measured_on_the_held_out_splits(finished: Path) -> None:
    scores = json.loads((finished / "evaluation" / "scores.json").read_text())
    text = json.dumps(scores)
    assert "text_unseen_voice" in text
    assert "text_unseen_wording" in text


def test_constrained_answers_of_an_untrained_model_are_grammatical(finished: Path) -> None:
    scores = {score["name"]: score for score in json.loads((finished / "evaluation" / "scores.json").read_text())}
    assert scores["grammar_constrained"]["value"] == 1.0


def test_every_stage_of_post_training_is_compared(finished: Path) -> None:
    stages = load_stages(finished)
    assert [stage.label for stage in stages] == ["SFT-1", "SFT-2", "DPO", "merged"]
    assert {stage.card["ranking"].n for stage in stages} == {12}
    assert [stage.win_rate and stage.win_rate.n for stage in stages] == [None, 4, 4, 4]
    assert "Stage by stage" in (finished / "report.html").read_text()


def test_the_merged_model_answers(finished: Path) -> None:
    with SpokenAnswerer.load(finished) as answerer:
        weights = answerer.engine.model.state_dict()
    with SpokenAnswerer.load(finished, finished / "merged") as answerer:
        merged = answerer.engine.model.state_dict()
    with SpokenAnswerer.load(finished, finished / "sft") as answerer:
        first = answerer.engine.model.state_dict()
    name = "output_layer.weight"
    assert torch.equal(weights[name], merged[name])
    assert not torch.equal(weights[name], first[name])


def test_second_run_reuses_everything(
    chain_config: ChainConfig, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Chain(chain_config, finished, quick=True).run()
    printed = capsys.readouterr().out
    assert "started" not in printed
    assert printed.count("finished earlier, kept") == len(chain_config.stages)
