"""Look at every node of a job before its first step; started by srun on every process, from a rendered batch file.

Examples:
    srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$@"' bash \\
        python tools/preflight.py --nodes n1 n2 --gpus 8 --read data/sft --write runs/sft --limits min_free_disk_gb=500

Needs MASTER_ADDR and MASTER_PORT too. Rank 0 prints one line for everything that is wrong, with the node's name.
Exit codes: 0 the job can start, 1 something is wrong, 2 wrong arguments or rank 0 cannot be reached.
"""

from __future__ import annotations

import argparse
import sys

import yaml

from megatron_aqaa.config import parse_config
from megatron_aqaa.slurm.config import PreflightConfig
from megatron_aqaa.slurm.place import Place
from megatron_aqaa.slurm.preflight import look


def main() -> int:
    """Parse, look, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", nargs="+", required=True, help="names, in the order of ranks")
    parser.add_argument("--gpus", type=int, default=0, help="that each node must have")
    parser.add_argument("--read", action="append", default=[], help="path that each node must be able to read")
    parser.add_argument("--write", action="append", default=[], help="directory that each node must be able to write")
    parser.add_argument("--limits", nargs="*", default=[], metavar="NAME=VALUE", help="of section `preflight`")
    arguments = parser.parse_args()
    try:
        limits = parse_config(PreflightConfig, dict(map(setting, arguments.limits)), "--limits")
        place = Place.from_environment(tuple(arguments.nodes))
        result = look(place, arguments.gpus, arguments.read, arguments.write, limits)
    except ValueError as error:
        print(f"preflight: {error}", file=sys.stderr)
        return 2
    if place.rank == 0:
        report(place, result.problems, result.network.summary() if result.network else "network not measured")
    return 1 if result.problems else 0


def report(place: Place, problems: list[str], summary: str) -> None:
    print(f"preflight: {len(place.nodes)} nodes, {place.world_size} processes: {summary}")
    for problem in problems:
        print(f"preflight: {problem}", file=sys.stderr)


def setting(word: str) -> tuple[str, object]:
    name, separator, value = word.partition("=")
    if not separator:
        raise ValueError(f"--limits {word}: expected NAME=VALUE")
    return name, yaml.safe_load(value)


if __name__ == "__main__":
    sys.exit(main())
