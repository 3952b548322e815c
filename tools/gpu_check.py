"""Builds, tests and measures on a machine with a GPU, in parts of under nine minutes; one JSON a part.

Examples:
    python tools/gpu_check.py                        # all parts; what passed for these sources is not done again
    python tools/gpu_check.py build --wheels wheels  # no network: torch from the system, the rest from `make wheels`

Exit codes: 0 all passed, 1 a part failed, 2 no GPU here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CARRIED = ROOT / ".venv-gpu"  # beside the system's torch, where nothing can be downloaded
MINUTES = 9  # a part
PARTS = ("build", "test", "ops", "model", "large")
BENCHMARKS = {"ops": ("ops embedding code_pair attention logps",), "model": ("training_step", "audio_loading")}
BENCHMARKS |= {"large": ("large_layers", "recipe_steps")}
SOURCES = ("csrc/**/*.*", "megatron_aqaa/**/*.py", "tests/**/*.py", "benchmarks/*.py", "setup.py")
# Without this a CPU torch would skip every GPU test and pass.
SEES_GPU = """
from megatron_aqaa.ops.library import built_with_cuda
from megatron_aqaa.platform import device
assert device().type == "cuda", "this torch does not see the GPU: install a CUDA build of it"
assert built_with_cuda(), "the extension was built without its CUDA half: run the build part"
"""


def python() -> str:
    """The interpreter of the carried environment if there is one, else this one."""
    carried = CARRIED / "bin" / "python"
    return str(carried) if carried.exists() else sys.executable


def build_commands(wheels: Path) -> list[list[str]]:
    """Installs the package, into an environment of its own if wheels were carried along."""
    install = ["-m", "pip", "install", "--quiet", "--no-deps"]
    interpreter, carried = python(), []
    if wheels.is_dir():
        interpreter = str(CARRIED / "bin" / "python")
        environment = [sys.executable, "-m", "venv", "--system-site-packages", str(CARRIED)]
        carried = [environment, [interpreter, *install, "--no-index", *map(str, sorted(wheels.glob("*.whl")))]]
    package = [interpreter, *install, "--no-build-isolation", "--editable", "."]
    return [*carried, package, [interpreter, "-c", SEES_GPU]]


def commands(part: str, wheels: Path) -> list[list[str]]:
    """What a part runs, one command after the other."""
    if part == "build":
        return build_commands(wheels)
    if part == "test":
        # Only the files that have such tests: others import parts that a GPU machine need not hold.
        marked = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
        scripts = [["-m", "pytest", "-q", "-m", "gpu", *marked]]
    else:
        scripts = [[str(ROOT / "benchmarks" / f"{n}.py"), *w] for n, *w in map(str.split, BENCHMARKS[part])]
    return [[python(), *arguments] for arguments in (["-c", SEES_GPU], *scripts)]


def sources_digest(root: Path = ROOT) -> str:
    """Changes when anything that a part depends on does."""
    files = sorted(path for pattern in SOURCES for path in root.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def run_part(part: str, wheels: Path, gpu: str) -> dict[str, object]:
    """Runs the part, its output shown as it comes; the record of how it went."""
    start, environment = time.monotonic(), os.environ | {"MEGATRON_AQAA_CUDA": "1"}
    record: dict[str, object] = {"part": part, "date": date.today().isoformat(), "gpu": gpu, "passed": True}
    for command in commands(part, wheels):
        print(f"gpu_check: {part}: {' '.join(command)}", flush=True)
        left = 60 * MINUTES - (time.monotonic() - start)
        try:
            status: int | str = subprocess.run(command, cwd=ROOT, env=environment, timeout=max(left, 1)).returncode
        except subprocess.TimeoutExpired:
            status = f"stopped after {MINUTES} minutes"
        if status != 0:
            record |= {"passed": False, "failed_command": command, "status": status}
            break
    return {**record, "seconds": round(time.monotonic() - start, 1), "sources": sources_digest()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS, help="default: all, in this order")
    parser.add_argument("--wheels", type=Path, default=ROOT / "wheels", help="folder of wheels; used if it is there")
    parser.add_argument("--again", action="store_true", help="also what passed already for these sources")
    args = parser.parse_args()
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        print("gpu_check: nvidia-smi finds no GPU here: run this on a machine that has one", file=sys.stderr)
        return 2
    for part in [args.part] if args.part else PARTS:
        path = RESULTS / f"gpu_{part}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        if known.get("passed") and known.get("sources") == sources_digest() and not args.again:
            print(f"gpu_check: {part}: passed before for these sources ({path.name}); --again repeats it")
            continue
        record = run_part(part, args.wheels, gpu)
        path.write_text(json.dumps(record, indent=2) + "\n")
        if not record["passed"]:
            print(f"gpu_check: {part} failed, see {path}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
