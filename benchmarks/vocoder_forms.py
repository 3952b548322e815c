"""What makes the mel spectrum best: a flow, a regression, or a flow of what the regression leaves out, on some seeds.

    python benchmarks/vocoder_forms.py --run runs/demo

after `make demo` and the first commands of docs/vocoder.md, which train the generator and the judge.
Each form is trained on the same tokens for the same number of steps (the acoustic part of
`examples/tiny_cpu/vocoder.yaml`), speaks recordings of voices that no training heard with the same generator, and is
judged on words in any order and on phones (`examples/tiny_cpu/judge.yaml`) beside the originals. A flow draws at the
temperature that gave the fewest wrong phones on validation recordings, each training at its own. Training is kept in
the run: the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal, get_args

import torch
from side_by_side import save

from megatron_aqaa.config import load_config
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.manifest import Recording, read_recordings, select, spread
from megatron_aqaa.evaluation.lexicon import Lexicon
from megatron_aqaa.evaluation.phone_judge import PhoneJudge, spoken_phones
from megatron_aqaa.evaluation.resynthesis import ResynthesisTest
from megatron_aqaa.network_file import load_network
from megatron_aqaa.training.speech_models.vocoder_jobs import AcousticTrainConfig, VoiceTrainConfig, train_acoustic
from megatron_aqaa.vocabulary import Vocabulary
from megatron_aqaa.vocoder.acoustic import AcousticConfig, AcousticModel, SamplingConfig
from megatron_aqaa.vocoder.generator import Generator, GeneratorConfig
from megatron_aqaa.vocoder.token_vocoder import TokenVocoder

Form = Literal["flow", "regression", "both"]
# a flow that stands alone needs more steps than one that adds to a mean
STEPS: dict[Form, int] = {"flow": 10, "regression": 0, "both": SamplingConfig().steps}
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 1.0)
MEASURES = ("wer", "phone_error", "log_mel_l1", "variance_ratio", "f0_error", "voicing_error")
NUM_VALIDATION = 60
MADE_BY = "tools/train_vocoder.py"


def main() -> None:
    """Train, judge, print and save."""
    arguments = parse()
    for needed in (arguments.generator / "model.pt", arguments.judge / "linguistic.pt"):
        if not needed.exists():
            sys.exit(
                f"vocoder_forms: {needed} is missing: docs/vocoder.md says how it is trained; nothing was measured"
            )
    test = Test(arguments)
    rows = []
    for form in get_args(Form):
        scores = [test.score(form, seed) for seed in arguments.seeds]
        rows.append({"form": form, **{name: [score[name] for score in scores] for name in (*MEASURES, "temperature")}})
        print(line(form, rows[-1]), flush=True)
    original = {name: scores[0][name] for name in ("original_wer", "original_phone_error", "recordings")}
    print(f"originals: word error {original['original_wer']:.3f}, phone error {original['original_phone_error']:.3f}")
    settings = {"steps": arguments.steps, "seeds": arguments.seeds, "split": arguments.split, **original}
    save("vocoder_forms", arguments.output, rows, **settings)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="with speech/, tokens/ and tokenizer/")
    parser.add_argument("--generator", type=Path, help="folder of a trained generator (default: RUN/voice/generator)")
    parser.add_argument("--judge", type=Path, help="folder of a trained phone recogniser (default: RUN/judge)")
    parser.add_argument("--steps", type=int, default=2000, help="of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="unseen_voice", help="recordings that are spoken")
    parser.add_argument("--limit", type=int, default=300, help="at most so many, spread evenly")
    parser.add_argument("-o", "--output", type=Path, help="JSON (default: benchmarks/results)")
    arguments = parser.parse_args()
    arguments.generator = arguments.generator or arguments.run / "voice" / "generator"
    arguments.judge = arguments.judge or arguments.run / "judge"
    return arguments


class Test:
    """What all forms share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.manifest = arguments.run / "speech" / "manifest.jsonl"
        recordings = read_recordings(self.manifest)
        self.recordings, self.validation = (
            spread(select(recordings, split, ("user",)), limit)
            for split, limit in ((arguments.split, arguments.limit), ("validation", NUM_VALIDATION))
        )
        self.tokens = Documents(arguments.run / "tokens" / "audio")
        self.generator = load_network(Generator, GeneratorConfig, arguments.generator / "model.pt", MADE_BY)
        words = {word for recording in recordings for word in recording.text.split()}
        self.judge = PhoneJudge.load(arguments.judge, Lexicon.spoken(words))
        self.spoken = spoken_phones(self.manifest)

    def score(self, form: Form, seed: int) -> dict[str, float]:
        """Scores of one training."""
        config = self._config(form, seed)
        train_acoustic(config)
        acoustic = load_network(AcousticModel, AcousticConfig, config.output / "model.pt", MADE_BY)
        vocabulary = Vocabulary.load(config.output / "vocabulary.yaml")

        def judged(temperature: float, recordings: Sequence[Recording]) -> dict[str, float]:
            sampling = SamplingConfig(STEPS[form], temperature=temperature)
            vocoder = TokenVocoder(acoustic, self.generator, vocabulary, sampling)
            return asdict(ResynthesisTest(vocoder, self.tokens, self.judge, self.spoken).score(recordings))

        temperatures = TEMPERATURES if STEPS[form] else (0.0,)
        best = min(temperatures, key=lambda temperature: judged(temperature, self.validation)["phone_error"])
        return {**judged(best, self.recordings), "temperature": best}

    def _config(self, form: Form, seed: int) -> AcousticTrainConfig:
        run = self.arguments.run
        base = load_config(VoiceTrainConfig, "examples/tiny_cpu/vocoder.yaml").acoustic
        return replace(
            base,
            speech=replace(base.speech, manifest=self.manifest),
            tokens=run / "tokens" / "audio",
            tokenizer=run / "tokenizer",
            output=run / "vocoder_forms" / f"{form}-{seed}-{self.arguments.steps}",
            model=replace(base.model, form=form),
            fit=replace(base.fit, steps=self.arguments.steps, seed=seed),
        )


def line(form: str, row: dict[str, object]) -> str:
    """Mean and spread over the seeds."""
    cells = [f"{name} {_spread(row[name])}" for name in MEASURES]  # type: ignore[arg-type]
    return f"{form:12}" + "  ".join(cells)


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
