"""Every operator beside its peers, one after the other, each in a process of its own: tables here, JSON in results/.

    python benchmarks/ops.py
    python benchmarks/ops.py embedding logps

On a CPU each part writes a file of its own, on a GPU all parts stand in one, `results/h200_ops.json` on an H200: what a
part measures anew replaces what it measured before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from side_by_side import RESULTS, on_gpu, short_name

PARTS = ("embedding", "code_pair", "attention", "logps", "index")


def move_into_one(part: str, results: Path) -> Path:
    """Moves the record that `part` has just written on a GPU into the file of all parts; that file."""
    alone = results / f"{part}_cuda.json"
    record = json.loads(alone.read_text())
    merged = results / f"{short_name(record['gpu'])}_ops.json"
    records = json.loads(merged.read_text()) if merged.exists() else {}
    merged.write_text(json.dumps(records | {part: record}, indent=2) + "\n")
    alone.unlink()
    return merged


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
        if on_gpu() and codes[-1] == 0:
            print(f"moved into {move_into_one(part, RESULTS)}", flush=True)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
