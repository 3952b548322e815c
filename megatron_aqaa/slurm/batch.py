"""A job as a batch file that a person can read, change and submit."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from megatron_aqaa.platform.exit_status import REJECTED, STOPPED
from megatron_aqaa.slurm.config import SHARDED, JobConfig, SlurmConfig
from megatron_aqaa.slurm.needs import Needs

_RENDEZVOUS = """\
# Processes meet at the first node, by the address that SLURM has for it: its name need not resolve.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | xargs)
MASTER_ADDR=$(scontrol show node "${nodes%% *}" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
"""

_SIGNALS = """\
# `--signal=B:` reaches this shell alone, which passes it on to the steps. SIGTERM (preemption) reaches them anyway.
stopping=
trap 'stopping=1 interrupted=1; scancel --signal=@SIGNAL@ "$SLURM_JOB_ID" || :' USR1
trap 'stopping=1 interrupted=1' TERM

# One process per task. It takes its rank from SLURM and becomes the command, so that signals meet no shell on the way.
# --wait: one that ends early ends the others, but not before they have saved and said so by their exit status.
# In the background: a shell heeds signals only between commands and in `wait`.
in_step() {
    [ -z "$stopping" ] || return @STOPPED@
    @SRUN@ \\
        bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec "$@"' bash "$@" &
    local step=$! status
    while :; do
        interrupted= status=0
        wait "$step" || status=$?
        [ -n "$interrupted" ] || return "$status"
    done
}
"""

_REJECTS = """\
# @REJECTED@: done, but some records were rejected, no more than the command's `max_rejected_ratio`.
if [ "$status" = @REJECTED@ ]; then
    echo "records were rejected, see above; what waits for this job goes on"
    status=0
fi
"""

_REQUEUE = """\
# @STOPPED@: stopped and saved. 138, 143: SIGUSR1 or SIGTERM met a process before its first step or after its last.
if [ "$status" != 0 ] && { [ -n "$stopping" ] || [[ $status =~ ^(@STOPPED@|138|143)$ ]]; }; then
    # A job that is no longer RUNNING was cancelled, or its time is over: then SLURM decides.
    if [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
        echo "stopped with status $status: back into the queue"
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
"""


def render(job: JobConfig, needs: Needs, source: str) -> str:
    """The batch file of `job`.

    Args:
        job: from `source`.
        needs: of its command; looked at by the pre-flight.
        source: file that the reader is to change instead.
    """
    slurm = job.slurm
    parts = [
        "\n".join(["#!/bin/bash", f"# Rendered by tools/launch_slurm.py from {source}.", *_options(job)]) + "\n",
        "\n".join(["set -e -o pipefail", *_environment(slurm)]) + "\n",
        _RENDEZVOUS,
        _SIGNALS.replace("@SRUN@", _srun(slurm)).replace("@SIGNAL@", "USR1" if job.is_training else "INT"),
        "\n".join(["status=0", *_steps(job, needs)]) + "\n",
        _REJECTS if job.command[0] in SHARDED and slurm.array_size is None else "",
        _REQUEUE if slurm.requeue else "",
        'exit "$status"\n',
    ]
    return "\n".join(filter(None, parts)).replace("@STOPPED@", str(STOPPED)).replace("@REJECTED@", str(REJECTED))


def _options(job: JobConfig) -> list[str]:
    slurm = job.slurm
    array = slurm.array_size is not None
    options = {
        "job-name": job.name,
        "nodes": slurm.nodes,
        "ntasks-per-node": slurm.tasks_per_node,
        "cpus-per-task": slurm.cpus_per_process,
        "gpus-per-node": slurm.gpus_per_node or None,
        "time": slurm.time_limit,
        "partition": slurm.partition,
        "account": slurm.account,
        "array": f"0-{slurm.array_size - 1}" if slurm.array_size is not None else None,
        "output": slurm.log_directory / ("%x-%A_%a.out" if array else "%x-%j.out"),
        "open-mode": "append",
        "signal": f"B:USR1@{slurm.signal_lead_s}",
    }
    lines = [f"--{name}={value}" for name, value in options.items() if value is not None]
    lines += ["--requeue" if slurm.requeue else "--no-requeue", *slurm.extra]
    return [f"#SBATCH {line}" for line in lines]


def _environment(slurm: SlurmConfig) -> list[str]:
    activate = [f"source {shlex.quote(f'{slurm.venv}/bin/activate')}"] if slurm.venv else []
    exports = [f"export {name}={shlex.quote(str(value))}" for name, value in slurm.environment.items()]
    return [*slurm.setup, *activate, *exports]


def _srun(slurm: SlurmConfig) -> str:
    """All that the step needs is said again: since 22.05, srun does not take `--cpus-per-task` over from sbatch."""
    options = [
        f"--nodes={slurm.nodes}",
        f"--ntasks-per-node={slurm.tasks_per_node}",
        f"--cpus-per-task={slurm.cpus_per_process}",
        "--kill-on-bad-exit=0",
        "--wait=60",
    ]
    lines = [" ".join(["srun", *options])]
    if slurm.container_image is not None:
        mounts = ",".join(['"$SLURM_SUBMIT_DIR:$SLURM_SUBMIT_DIR"', *map(shlex.quote, slurm.container_mounts)])
        image = shlex.quote(slurm.container_image)
        lines.append(f'--container-image={image} --container-mounts={mounts} --container-workdir="$SLURM_SUBMIT_DIR"')
    return " \\\n        ".join(lines)


def _steps(job: JobConfig, needs: Needs) -> list[str]:
    preflight = job.preflight
    limits = " ".join(f"{name}={value:g}" for name, value in preflight.limits().items())
    words = ["--nodes $nodes", f"--gpus {job.slurm.gpus_per_node}" if job.slurm.gpus_per_node else ""]
    words += _paths("--read", [*map(str, needs.reads), *preflight.readable])
    words += _paths("--write", [*map(str, needs.writes), *preflight.writable])
    words.append(f"--limits {limits} || status=$?")
    command = shlex.join(job.command)
    if job.slurm.array_size is not None:
        command += f' shard="$SLURM_ARRAY_TASK_ID" num_shards={job.slurm.array_size}'
    return [
        "# Before the first step, every node is looked at; the one that is wrong is named.",
        " \\\n    ".join(["in_step python tools/preflight.py", *filter(None, words)]),
        '[ "$status" != 0 ] || in_step python ' + command + " || status=$?",
    ]


def _paths(option: str, paths: Iterable[str]) -> list[str]:
    """Quoted, so that `$NAME` reaches the node as it is."""
    return [f"{option} {shlex.quote(path)}" for path in dict.fromkeys(paths)]
