"""`tools/train_vocoder.py flow` and `hift`, run as a user would, at a tiny size for a few steps."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import yaml

from megatron_aqaa.config import load_config
from megatron_aqaa.data.audio_tokens import TokenizeConfig, tokenize_manifest
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.network_file import load_network
from megatron_aqaa.training.speech_models.full_size_vocoder import FlowTrainConfig, HiftTrainConfig
from megatron_aqaa.vocoder.cosyvoice.flow_model import FlowConfig, FlowModel, TokenBatch
from megatron_aqaa.vocoder.cosyvoice.hift import HiftConfig, HiftGenerator
from megatron_aqaa.vocoder.discriminators import DiscriminatorConfig
from tests.tokenizer.tiny import write_corpus, write_tokenizer

ROOT = Path(__file__).parents[2]
HIFT = {"base_channels": 16, "f0_channels": 8, "kernel_sizes": [3]}
JUDGES = {"periods": [2], "period_channels": [4, 4], "resolutions": [[512, 50, 240]], "spectrum_channels": 4}
ENCODER = {"input_size": 16, "output_size": 16, "attention_heads": 2, "linear_units": 32, "num_blocks": 1}
ESTIMATOR = {"channels": [16, 16], "num_transformer_blocks": 1, "num_mid_blocks": 1, "num_heads": 2, "head_size": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with speech, tokens and the two configurations."""
    run = tmp_path_factory.mktemp("run")
    manifest = write_corpus(run / "speech", 8)
    (run / "tokenizer").mkdir()
    write_tokenizer(run / "tokenizer")
    tokenize_manifest(TokenizeConfig(manifest, run / "tokenizer", run / "tokens", num_workers=0))
    shared = {"speech": {"manifest": str(manifest), "role": "user"}, "held_out": "unseen_voice", "num_held_out": 2}
    flow = {
        "tokens": str(run / "tokens" / "audio"),
        "vocabulary": str(run / "tokenizer" / "vocabulary.yaml"),
        "model": {"encoder": ENCODER, "estimator": ESTIMATOR, "chunk_tokens": [5, 10]},
        "batching": {"max_batch_s": 2.0, "num_buckets": 2},
        "steps": 2,
        "tensorboard": True,
        "fit": {"steps": 4, "checkpoint_interval": 2, "log_interval": 1, "validation_interval": 3, "ema_decay": 0.9},
    }
    hift = {
        "model": HIFT,
        "discriminators": JUDGES,
        "batch_size": 2,
        "crop_length": 5120,
        "tensorboard": True,
        "fit": {"steps": 4, "checkpoint_interval": 2, "log_interval": 1, "validation_interval": 2},
    }
    for name, settings in (("flow", flow), ("hift", hift)):
        (run / f"{name}.yaml").write_text(yaml.safe_dump(shared | settings | {"output": str(run / name)}))
    return run


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run_tool(*words: object, tool: str = "train_vocoder") -> int:
        monkeypatch.setattr(sys, "argv", [tool, *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
        return int(stop.value.code or 0)

    return run_tool


def board_of(directory: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(directory / "tensorboard"), size_guidance={"images": 0, "audio": 0})
    return board.Reload()


def test_flow(run: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("flow", run / "flow.yaml") == 0
    report = json.loads((run / "flow" / "report.json").read_text())
    assert report.keys() == {"mel_l1", "variance_ratio"}
    assert f"mel_l1           {report['mel_l1']:.4f}" in capsys.readouterr().out
    records = [json.loads(line) for line in (run / "flow" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 3, 4, 4]  # validated after 3 and 4
    assert {name: records[-1][name] for name in report} == report
    board = board_of(run / "flow")
    for events in (board.Images("recording 0 drawn mel"), board.Audio("recording 0 drawn")):
        assert {event.step for event in events} == {3, 4}
    model = load_network(FlowModel, FlowConfig, run / "flow" / "model.pt", "this test")
    assert (
        model.sample(TokenBatch(torch.tensor([[3, 900, 1024, 5119, 2000]])), torch.zeros(1, 10, 80), 1).shape[1] == 10
    )


def test_hift(run: Path, call: Callable[..., int]) -> None:
    assert call("hift", run / "hift.yaml") == 0
    report = json.loads((run / "hift" / "report.json").read_text())
    assert report.keys() == {"mel_l1", "f0_error_hz"}
    records = [json.loads(line) for line in (run / "hift" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 2, 3, 4, 4]  # validated after 2 and 4
    assert records[-1]["mel_l1"] == pytest.approx(report["mel_l1"], rel=0.05)  # other noise in the source
    assert records[0].keys() >= {"loss", "deception", "feature", "mel", "relativistic", "pitch", "discriminator_loss"}
    model = load_network(HiftGenerator, HiftConfig, run / "hift" / "model.pt", "this test")
    assert model(torch.zeros(1, 4, 80)).waveform.shape == (1, 1024)

    board = board_of(run / "hift")
    assert [event.step for event in board.Scalars("mel_l1")] == [2, 4]
    assert [event.step for event in board.Audio("recording 1 generated")] == [2, 4]
    assert [event.step for event in board.Images("recording 1 generated spectrogram")] == [2, 4]
    picture = board.Images("recording 1 generated mel")[-1]
    assert (picture.height, picture.width > 40) == (80, True)


def test_vocode_speaks_with_both(
    run: Path, call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("flow", "hift"):
        assert call(name, run / f"{name}.yaml") == 0  # trained by now: read
    words = (run, "--tokens", run / "tokens" / "audio", "--record", 2, "-o", tmp_path / "a.wav", "--steps", 1)
    assert call(*words, tool="vocode") == 0
    assert "a.wav: 0.72 s of speech" in capsys.readouterr().out
    assert soundfile.info(tmp_path / "a.wav").samplerate == 22050
    assert call(*words, "--stream", tool="vocode") == 2
    assert "this vocoder speaks whole utterances" in capsys.readouterr().err


def test_vocode_speaks_with_a_voice_prompt(
    run: Path, call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("flow", "hift"):
        assert call(name, run / f"{name}.yaml") == 0  # trained by now: read
    recording = json.loads((run / "speech" / "manifest.jsonl").read_text().splitlines()[3])
    audio, ids = run / "speech" / recording["audio"], tmp_path / "ids.txt"
    ids.write_text(" ".join(map(str, Documents(run / "tokens" / "audio")[3].token_ids)))
    words = (run, "--tokens", run / "tokens" / "audio", "--record", 2, "--steps", 1)
    prompt = ("--prompt-audio", audio, "--prompt-ids", ids)
    for name, more in (("plain", ()), ("prompted", prompt)):
        assert call(*words, "-o", tmp_path / f"{name}.wav", *more, tool="vocode") == 0
    plain, prompted = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("plain", "prompted"))
    assert plain.shape == prompted.shape and (plain != prompted).any()

    (tmp_path / "short.txt").write_text(" ".join(ids.read_text().split()[:5]))
    for more, message in (
        (prompt[:2], "need each other"),
        (prompt[2:], "need each other"),
        ((*prompt[:3], tmp_path / "short.txt"), "but its 5 tokens last 0.12 s"),
        ((*prompt[:3], tmp_path / "none.txt"), "none.txt: cannot be read as text"),
    ):
        assert call(*words, "-o", tmp_path / "c.wav", *more, tool="vocode") == 2
        assert message in capsys.readouterr().err


def test_a_run_in_two_parts_is_the_run_in_one(run: Path, call: Callable[..., int], tmp_path: Path) -> None:
    for name, model, config in (("hift", HiftGenerator, HiftConfig), ("flow", FlowModel, FlowConfig)):
        assert call(name, run / f"{name}.yaml") == 0
        whole = load_network(model, config, run / name / "model.pt", "this test").state_dict()
        flat = () if name == "hift" else ("fit.decay_ratio=0",)  # fit's schedule knows the number of steps
        if flat:
            assert call(name, run / f"{name}.yaml", *flat, f"output={tmp_path / 'flat'}") == 0
            whole = load_network(model, config, tmp_path / "flat" / "model.pt", "this test").state_dict()
        for steps in (2, 4):
            words = ("tensorboard=false", f"fit.steps={steps}", f"output={tmp_path / name}")
            assert call(name, run / f"{name}.yaml", *flat, *words) == 0
        parts = load_network(model, config, tmp_path / name / "model.pt", "this test").state_dict()
        assert all(torch.equal(tensor, parts[key]) for key, tensor in whole.items())


def test_unusable_recordings_are_set_aside_and_named(run: Path, call: Callable[..., int], tmp_path: Path) -> None:
    """One that is learned from and one that is held out; a run in two parts is still the run in one."""
    shutil.copytree(run / "speech", tmp_path / "speech")
    manifest = tmp_path / "speech" / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    bad = {
        str(tmp_path / "speech" / next(r["audio"] for r in lines if (r["role"], r["split"]) == ("user", split)))
        for split in ("train", "unseen_voice")
    }
    for audio in bad:
        Path(audio).write_text("no recording")
    more = ("tensorboard=false", f"speech.manifest={manifest}")
    for name, exact in (("flow", "fit.decay_ratio=0"), ("hift", "batch_size=8")):
        weights = []
        for output, steps in (("whole", (6,)), ("parts", (3, 6))):
            for count in steps:
                words = (exact, f"fit.steps={count}", f"output={tmp_path / output / name}")
                with pytest.warns(UserWarning, match="set aside so far, the last: .*not readable"):
                    assert call(name, run / f"{name}.yaml", *more, *words) == 0
            rejects = (tmp_path / output / name / "rejects-0.jsonl").read_text().splitlines()
            assert {json.loads(line)["audio"] for line in rejects} == bad
            network, config = {"flow": (FlowModel, FlowConfig), "hift": (HiftGenerator, HiftConfig)}[name]
            weights.append(load_network(network, config, tmp_path / output / name / "model.pt", "x").state_dict())
        assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())


def test_released_weights_are_where_training_begins(
    run: Path, call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(5)
    released = HiftGenerator(load_config(HiftTrainConfig, run / "hift.yaml").model)
    torch.save(released.state_dict(), tmp_path / "hift.pt")
    still = ("fit.generator_rate=0", f"output={tmp_path / 'out'}", f"start_from={tmp_path / 'hift.pt'}")
    assert call("hift", run / "hift.yaml", "tensorboard=false", *still) == 0
    trained = load_network(HiftGenerator, HiftConfig, tmp_path / "out" / "model.pt", "this test").state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in released.state_dict().items())
    assert call("flow", run / "flow.yaml", f"start_from={tmp_path / 'hift.pt'}", f"output={tmp_path / 'flow'}") == 2
    assert "hift.pt: not the FlowModel that its configuration describes" in capsys.readouterr().err


def test_a_vocabulary_of_another_size_is_named(
    run: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("flow", run / "flow.yaml", "model.vocab_size=4096", f"output={run / 'other'}") == 2
    assert "model.vocab_size = 4096" in capsys.readouterr().err
    assert call("hift", run / "hift.yaml", "crop_length=5000", f"output={run / 'other'}") == 2
    assert "crop_length = 5000: must be a multiple of the mel's hop_length 256" in capsys.readouterr().err


def test_the_examples_are_the_published_sizes() -> None:
    flow = load_config(FlowTrainConfig, ROOT / "examples/vocoder/flow.yaml")
    hift = load_config(HiftTrainConfig, ROOT / "examples/vocoder/hift.yaml")
    assert flow.model == FlowConfig()
    assert (hift.model, hift.discriminators) == (HiftConfig(), DiscriminatorConfig())
    assert [flow.fit.rate(step) for step in (0, 2499, 499_999)] == pytest.approx([0.001 / 2500, 0.001, 0.001])
    assert hift.fit.rate_ratio(999_999) == 1.0
    assert hift.crop_length % hift.model.mel.hop_length == 0


def test_the_examples_at_24_khz_fit_each_other() -> None:
    flow = load_config(FlowTrainConfig, ROOT / "examples/vocoder/flow_24khz.yaml")
    hift = load_config(HiftTrainConfig, ROOT / "examples/vocoder/hift_24khz.yaml")
    assert flow.model.mel == hift.model.mel
    assert (flow.model.frames_per_token, flow.model.num_frames(3)) == (2, 6)
    chunks_s = [tokens / 25 for tokens in flow.model.chunk_tokens]
    assert chunks_s == [0.6, 0.96, 1.92]  # as published
    assert hift.crop_length % hift.model.mel.hop_length == 0
    assert flow.output.parent == hift.output.parent


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        *(("flow", 105.2), ("flow_24khz", 105.2), ("flow_24khz_small", 32.5), ("flow_24khz_tiny", 4.3)),
        *(("hift", 20.5), ("hift_24khz", 20.8), ("hift_24khz_tiny", 0.3)),
    ],
)
def test_sizes_of_the_examples(name: str, millions: float) -> None:
    """From a CPU's to the published one; those at 24 kHz have one mel, so that any flow speaks through any HiFT."""
    settings, network = (FlowTrainConfig, FlowModel) if name.startswith("flow") else (HiftTrainConfig, HiftGenerator)
    config = load_config(settings, ROOT / "examples/vocoder" / f"{name}.yaml")
    with torch.device("meta"):
        model = network(config.model)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    if "24khz" in name:
        assert config.model.mel == load_config(HiftTrainConfig, ROOT / "examples/vocoder/hift_24khz.yaml").model.mel
