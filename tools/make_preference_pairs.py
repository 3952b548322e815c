"""Make preference pairs of a model's own answers: sampled, rated by objective rules, kept where one is clearly better.

Examples:
    python tools/make_preference_pairs.py examples/tiny_cpu/pairs.yaml
    python tools/make_preference_pairs.py examples/tiny_cpu/pairs.yaml num_questions=500 output=runs/mine/pairs.jsonl

The rules are right answer, then style obeyed on the waveform, then brevity: evaluation/preference_rules.py.
Prints what became of the questions and writes it beside the pairs, to `.counts.json`. Run the same command again after
an interruption: finished blocks of questions are kept.
Exit codes: 0 done, 2 wrong settings or files, or no pair, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys

from megatron_aqaa.config import load_config
from megatron_aqaa.evaluation.pair_blocks import make_pairs, num_questions
from megatron_aqaa.evaluation.preference_pairs import OUTCOMES, PairsConfig
from megatron_aqaa.training.progress import Progress


def main() -> int:
    """Parse, load, make, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, see megatron_aqaa/evaluation/preference_pairs.py")
    parser.add_argument("overrides", nargs="*", help="field=value")
    arguments = parser.parse_args()
    try:
        config = load_config(PairsConfig, arguments.config, arguments.overrides)
        with Progress("questions", num_questions(config)) as progress:
            counts = make_pairs(config, progress.update)
    except ValueError as error:
        print(f"make_preference_pairs: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("make_preference_pairs: interrupted; run the same command to continue", file=sys.stderr)
        return 130
    print(f"{counts['right']} of {counts['answers']} answers right")
    print("questions: " + ", ".join(f"{counts.get(outcome, 0)} {outcome.replace('_', ' ')}" for outcome in OUTCOMES))
    print(config.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
