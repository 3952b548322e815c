"""Every operator beside its peers, one after the other, each in a process of its own: tables here, JSON in results/.

python benchmarks/ops.py
python benchmarks/ops.py embedding logps
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PARTS = ("embedding", "attention", "logps", "index")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; default: all")
    parts = parser.parse_args().parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    codes = []
    for part in parts:
        print(f"=== {part}", flush=True)
        codes.append(subprocess.run([sys.executable, Path(__file__).with_name(f"{part}.py")]).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
