"""Measure a trained vocoder: held-out recordings are spoken from their tokens, heard, and compared with the originals.

Examples:
    python tools/evaluate_vocoder.py runs/demo/vocoder runs/demo/speech/manifest.jsonl runs/demo/tokens/audio
    python tools/evaluate_vocoder.py runs/demo/vocoder runs/demo/speech/manifest.jsonl runs/demo/tokens/audio \\
        --role user --split unseen_voice --limit 50 --judge runs/demo/judge -o scores.json

Prints the word error of an independent recogniser on the originals and on the resynthesis, log-mel L1, its variance
ratio, errors of pitch and voicing. With --judge, words are those of the manifest in any order, and phones are judged
too (examples/tiny_cpu/judge.yaml); without, the recogniser chooses among the sentences and needs the extra [eval].
Exit codes: 0 done, 1 the recogniser is not installed, 2 wrong arguments or files, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.manifest import read_recordings, select, spread
from megatron_aqaa.evaluation.judge import SpokenAnswerJudge
from megatron_aqaa.evaluation.lexicon import Lexicon
from megatron_aqaa.evaluation.phone_judge import PhoneJudge, spoken_phones
from megatron_aqaa.evaluation.resynthesis import ResynthesisScore, ResynthesisTest
from megatron_aqaa.training.progress import Progress
from megatron_aqaa.vocoder.acoustic import SamplingConfig
from megatron_aqaa.vocoder.token_vocoder import TokenVocoder


def main() -> int:
    """Parse, measure, print."""
    arguments = parse()
    try:
        score = measure(arguments)
    except ValueError as error:
        print(f"evaluate_vocoder: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"evaluate_vocoder: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("evaluate_vocoder: interrupted", file=sys.stderr)
        return 130
    print(score.table())
    if arguments.output:
        arguments.output.write_text(json.dumps(asdict(score), indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    defaults = SamplingConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocoder", type=Path, help="folder with acoustic/ and generator/")
    parser.add_argument("manifest", type=Path, help="of the recordings")
    parser.add_argument("tokens", type=Path, help="prefix of their token data set")
    parser.add_argument("--role", default="assistant", help="whose recordings")
    parser.add_argument("--split", default="validation", help="which recordings")
    parser.add_argument("--limit", type=int, default=100, help="at most so many, spread evenly")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="flow steps; 0 speaks the mean")
    parser.add_argument("--guidance", type=float, default=defaults.guidance, help="classifier-free guidance")
    parser.add_argument("--temperature", type=float, default=defaults.temperature, help="deviation of the flow's noise")
    parser.add_argument("--judge", type=Path, help="folder of a phone recogniser that hears open sequences of words")
    parser.add_argument("--bf16", action="store_true", help="run the flow in bf16")
    parser.add_argument("-o", "--output", type=Path, help="JSON")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> ResynthesisScore:
    """Everything that may fail for want of a file."""
    recordings = spread(
        select(read_recordings(arguments.manifest), arguments.split, (arguments.role,)), arguments.limit
    )
    if not recordings:
        raise ValueError(f"{arguments.manifest}: no recording of role {arguments.role} and split {arguments.split}")
    sampling = SamplingConfig(arguments.steps, arguments.guidance, arguments.temperature, arguments.bf16)
    vocoder = TokenVocoder.load(arguments.vocoder, sampling)
    tokens = Documents(arguments.tokens)
    if arguments.judge:
        words = {word for recording in read_recordings(arguments.manifest) for word in recording.text.split()}
        judge = PhoneJudge.load(arguments.judge, Lexicon.spoken(words))
        test = ResynthesisTest(vocoder, tokens, judge, spoken_phones(arguments.manifest))
    else:
        closed = SpokenAnswerJudge(sorted({recording.text for recording in recordings}))
        test = ResynthesisTest(vocoder, tokens, closed)
    progress = Progress("recordings", len(recordings))
    return test.score(recordings, lambda done, _: progress.update(done))


if __name__ == "__main__":
    sys.exit(main())
