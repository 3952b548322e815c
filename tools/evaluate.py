"""Score a trained run on held-out voices and wordings: text, speech, style, grammar.

Examples:
    python tools/evaluate.py --run runs/demo
    python tools/evaluate.py --run runs/demo num_questions=50 'num_spoken={unseen_voice: 20}'
    python tools/evaluate.py --run runs/demo --model runs/demo/sft2 --output runs/demo/comparison/sft2

Writes scores.json, scores.txt, samples.jsonl, ratings.json and the spoken answers to the output folder.
Exit codes: 0 done (targets reached or not, see the table), 2 a file or a setting that cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_aqaa.config import load_config
from megatron_aqaa.evaluation.held_out import HeldOutConfig, HeldOutTest
from megatron_aqaa.inference.answerer import SpokenAnswerer
from megatron_aqaa.training.progress import Progress


def main() -> int:
    """Parse, load, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="run directory")
    parser.add_argument("--model", type=Path, help="language-model run or checkpoint (default: merged, or sft)")
    parser.add_argument("--output", type=Path, help="folder of the results (default: <run>/evaluation)")
    parser.add_argument("--config", default="examples/tiny_cpu/evaluate.yaml", help="how much is measured")
    parser.add_argument("overrides", nargs="*", help="field=value")
    arguments = parser.parse_args()
    try:
        config = load_config(HeldOutConfig, arguments.config, arguments.overrides)
        with SpokenAnswerer.load(arguments.run, arguments.model) as answerer:
            card = HeldOutTest(answerer, arguments.run, config, arguments.output).score(_Display())
    except ValueError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate: interrupted; run the same command again", file=sys.stderr)
        return 130
    print(card.table())
    return 0


class _Display:
    """One progress display for each kind of work."""

    def __init__(self) -> None:
        self.shown: dict[str, Progress] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self.shown:
            self.shown[what] = Progress(what, total)
        self.shown[what].update(done)


if __name__ == "__main__":
    sys.exit(main())
