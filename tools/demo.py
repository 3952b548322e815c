"""The whole chain in miniature: speech, tokenizers, language model, voice, answers and a report.

Examples:
    python tools/demo.py            # about 20 minutes on two cores
    python tools/demo.py --quick    # a reduced run, about 5 minutes

Interrupt it at any time and run the same command again: finished stages are kept, the current one continues.
Exit codes: 0 done, 1 a stage failed, 2 wrong settings, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from megatron_aqaa.config import load_config
from megatron_aqaa.evaluation import comparison
from megatron_aqaa.training.chain import Chain, StageFailed
from megatron_aqaa.training.stages import ChainConfig


def main() -> int:
    """Parse, run the chain, say where to look and listen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="examples/tiny_cpu/demo.yaml", help="stages of the chain")
    parser.add_argument("--run", type=Path, help="run directory (default: runs/demo, or runs/quick with --quick)")
    parser.add_argument("--quick", action="store_true", help="reduced run with lower scores")
    parser.add_argument("--seed", type=int, default=0, help="of data, weights and batches; not 0: runs/demo-seed1 …")
    arguments = parser.parse_args()
    default = "runs/" + ("quick" if arguments.quick else "demo") + (f"-seed{arguments.seed}" if arguments.seed else "")
    run = arguments.run or Path(default)
    try:
        records = Chain(load_config(ChainConfig, arguments.config), run, arguments.quick, arguments.seed).run()
    except ValueError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except StageFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted, progress is kept; run the same command to continue", file=sys.stderr)
        return 130
    _print_outcome(run, records)
    return 0


def _print_outcome(run: Path, records: list[dict[str, object]]) -> None:
    print("\n" + (run / "evaluation" / "scores.txt").read_text())
    print(comparison.table(comparison.load_stages(run)) + "\n")
    print(json.dumps({str(record["name"]): record["seconds"] for record in records}))
    print(f"\nLook and listen: {run}/report.html")
    print(
        f"Ask it yourself: {os.path.relpath(sys.executable)} tools/generate.py question.wav -o answer.wav --run {run}"
    )


if __name__ == "__main__":
    sys.exit(main())
