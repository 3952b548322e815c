"""Write the report of a run: one self-contained page to look at and to listen to.

Example:
    python tools/report.py --run runs/demo     # writes runs/demo/report.html

Exit codes: 0 done, 2 a file that cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_aqaa.evaluation.report import write_report


def main() -> int:
    """Parse, write, say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="run directory")
    parser.add_argument("--title", default="First light", help="headline of the page")
    arguments = parser.parse_args()
    try:
        path = write_report(arguments.run, arguments.title)
    except ValueError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(f"Look and listen: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
