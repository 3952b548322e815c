"""Draw training runs: losses by modality, gradient norm, learning rate, throughput, memory, skipped steps.

Examples:
    python tools/plot_run.py runs/demo/sft                          # writes runs/demo/sft/run.svg
    python tools/plot_run.py runs/a runs/b --output compared.png    # over each other

Exit codes: 0 done, 2 a file that cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_aqaa.evaluation.run_picture import draw_runs, read_log


def main() -> int:
    """Parse, read, draw, say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory with log.jsonl")
    parser.add_argument("--output", type=Path, help=".svg, .png or .pdf; default: run.svg in the first run")
    arguments = parser.parse_args()
    output = arguments.output or arguments.runs[0] / "run.svg"
    try:
        draw_runs({str(run): read_log(run) for run in arguments.runs}, output)
    except ValueError as error:
        print(f"plot_run: {error}", file=sys.stderr)
        return 2
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
