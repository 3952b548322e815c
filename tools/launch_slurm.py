"""Run a command on a SLURM cluster: render a readable batch file from a launch file, and submit it.

Examples:
    python tools/launch_slurm.py examples/slurm/tiny_cpu.yaml --dry-run
    python tools/launch_slurm.py examples/slurm/aqaa_130b_32k.yaml slurm.nodes=64 slurm.partition=long
    python tools/launch_slurm.py --chain examples/slurm/aqaa_130b_chain.yaml
    python tools/launch_slurm.py examples/slurm/prepare_chat.yaml --array 16

With --chain, every stage is a job that waits for those it needs. Start it where the job is to run: paths are relative
to the current directory. Formats, signals and the pre-flight: docs/slurm.md.
Exit codes: 0 submitted or printed, 1 SLURM refused, 2 wrong settings or files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_aqaa.config import load_config
from megatron_aqaa.slurm.batch import render
from megatron_aqaa.slurm.chain import ChainConfig, with_arrays
from megatron_aqaa.slurm.config import JobConfig
from megatron_aqaa.slurm.needs import Needs, check_layout
from megatron_aqaa.slurm.submit import Batch, SubmissionFailed, sbatch_options, submit, write_batch
from megatron_aqaa.training.dpo.config import DPOTrainConfig
from megatron_aqaa.training.lm_config import TrainConfig

RUNS: dict[str, type[TrainConfig]] = {"tools/train.py": TrainConfig, "tools/train_dpo.py": DPOTrainConfig}


def main() -> int:
    """Parse, load, check, render, submit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="launch file, or chain file with --chain")
    parser.add_argument("overrides", nargs="*", help="section.field=value of that file")
    parser.add_argument("--chain", action="store_true", help="the file holds stages: one job each")
    parser.add_argument("--dry-run", action="store_true", help="print the batch files, submit nothing")
    parser.add_argument("--write", type=Path, metavar="DIRECTORY", help="write the batch files there, submit nothing")
    parser.add_argument("--requeue", action=argparse.BooleanOptionalAction, help="after a stop signal (default: yes)")
    parser.add_argument("--array", type=int, metavar="N", help="data preparation in N array tasks")
    arguments = parser.parse_intermixed_args()
    given = {"requeue": arguments.requeue, "array_size": arguments.array}
    overrides = [f"slurm.{name}={value}" for name, value in given.items() if value is not None]
    try:
        batches = rendered(arguments.config, [*arguments.overrides, *overrides], arguments.chain)
        if arguments.dry_run:
            show(batches)
        elif arguments.write is not None:
            print("\n".join(str(write_batch(batch, arguments.write)) for batch in batches))
        else:
            print("\n".join(f"{name}: job {number}" for name, number in submit(batches).items()))
    except ValueError as error:
        print(f"launch_slurm: {error}", file=sys.stderr)
        return 2
    except SubmissionFailed as error:
        print(f"launch_slurm: {error}", file=sys.stderr)
        return 1
    return 0


def rendered(path: str, overrides: list[str], is_chain: bool) -> list[Batch]:
    """All jobs of a launch file or a chain file, checked."""
    jobs = load_config(ChainConfig, path, overrides).jobs() if is_chain else [load_config(JobConfig, path, overrides)]
    batches = []
    for job in with_arrays(jobs):
        needs = needs_of(job)
        check_layout(job, needs)
        batches.append(Batch(job, render(job, needs, path)))
    return batches


def needs_of(job: JobConfig) -> Needs:
    """What a command reads, and how many processes it wants: mistakes come up before the job has waited for nodes."""
    files = tuple(Path(word) for word in job.command if word.endswith((".py", ".yaml", ".yml")) and "=" not in word)
    for path in files:
        if not path.is_file():
            raise ValueError(f"{job.name}: {path}: no such file; paths start from the current directory")
    if job.command[0] not in RUNS:
        return Needs(reads=files)
    if len(job.command) < 2:
        raise ValueError(f"{job.name}: command names no YAML file after {job.command[0]}")
    config = load_config(RUNS[job.command[0]], job.command[1], job.command[2:])
    data, loop = config.data, config.training
    prefixes = [data.directory / name for name in (*data.train, *data.validation)]
    sources = {loop.init_from, loop.code_vectors}
    if isinstance(config, DPOTrainConfig):
        sources.add(config.reference_checkpoint)
    return Needs(
        config.parallel.model_parallel_size,
        loop.micro_batch_size,
        loop.global_batch_size,
        reads=(*files, config.vocabulary, *(Path(f"{prefix}.idx") for prefix in prefixes), *sorted(sources - {None})),
        writes=(config.run,),
    )


def show(batches: list[Batch]) -> None:
    for batch in batches:
        needs = [f"<job {name}>" for name in batch.job.needs]
        print(f"# sbatch {' '.join([*sbatch_options(needs), f'{batch.job.name}.sbatch'])}\n{batch.text}")


if __name__ == "__main__":
    sys.exit(main())
