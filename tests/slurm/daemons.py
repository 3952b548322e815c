"""A real SLURM on this machine: munged, slurmctld and two slurmd in a directory of their own, gone afterwards.

No systemd, no cgroups, no accounting, nothing outside the directory; all of it runs as root on loopback.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from tests.slurm import guard
from tests.slurm.cluster import Cluster, until

NODES = ("n1", "n2")
CPUS = 4
"""Of each node, whatever the machine has: two jobs of two processes are to run side by side."""
DAEMONS = {"munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm"}
SBIN = "/usr/sbin:/usr/local/sbin:"


def reason_to_skip() -> str | None:
    """Why no cluster can be started here, or None."""
    if os.geteuid() != 0:
        return "needs root: slurmd starts the processes of a job as the user who submitted it"
    missing = {DAEMONS[name] for name in DAEMONS if shutil.which(name, path=SBIN + os.environ["PATH"]) is None}
    return f"needs packages {', '.join(sorted(missing))} (apt-get install slurm-wlm munge)" if missing else None


@contextmanager
def running() -> Iterator[Cluster]:
    """A cluster; nothing of it is left afterwards, also where this process is killed."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="slurm"))  # short: a socket's path has at most 107 bytes
        stack.callback(_dismiss, subprocess.Popen([sys.executable, guard.__file__, folder], stdin=subprocess.PIPE))
        yield _started(stack, folder)


def _started(stack: ExitStack, folder: Path) -> Cluster:
    folder.chmod(0o755)  # munge asks for it
    for name in ("state", "log", *(f"spool/{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    (folder / "slurm.conf").write_text(configuration(folder))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))},
        "PATH": SBIN + os.environ["PATH"],
        "SLURM_CONF": str(folder / "slurm.conf"),
    }
    cluster = Cluster(folder, environment)
    _munged(stack, folder, environment)
    _daemon(stack, folder, environment, "slurmctld", "-D", "-c")
    for node in NODES:
        _daemon(stack, folder, environment, "slurmd", "-D", "-N", node)
    until(lambda: _idle(cluster), 60.0, lambda: _logs(folder))
    stack.callback(_cancel_all, cluster)
    return cluster


def configuration(folder: Path) -> str:
    """slurm.conf: daemons on free ports, everything in `folder`, jobs scheduled at once."""
    host, (control, *ports) = socket.gethostname().partition(".")[0], _free_ports(1 + len(NODES))
    lines = f"""
        ClusterName=test
        SlurmctldHost={host}(127.0.0.1)
        SlurmctldPort={control}
        SlurmUser=root
        SlurmdUser=root
        AuthType=auth/munge
        AuthInfo=socket={folder}/munge.socket
        CredType=cred/munge
        SlurmctldPidFile={folder}/slurmctld.pid
        SlurmdPidFile={folder}/slurmd-%n.pid
        SlurmdSpoolDir={folder}/spool/%n
        StateSaveLocation={folder}/state
        ProctrackType=proctrack/linuxproc
        TaskPlugin=task/none
        SelectType=select/cons_tres
        SelectTypeParameters=CR_Core
        JobAcctGatherType=jobacct_gather/none
        AccountingStorageType=accounting_storage/none
        MpiDefault=none
        SwitchType=switch/none
        ReturnToService=2
        SlurmdParameters=config_overrides
        SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=1,bf_interval=1
        PreemptType=preempt/partition_prio
        PreemptMode=REQUEUE
        KillWait=5
        InactiveLimit=0
        PartitionName=work Nodes={",".join(NODES)} Default=YES State=UP MaxTime=INFINITE PriorityTier=1 GraceTime=60
        PartitionName=urgent Nodes={",".join(NODES)} State=UP MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
    """
    nodes = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory=1024"
        for node, port in zip(NODES, ports, strict=True)
    ]
    return "\n".join([*(line.strip() for line in lines.splitlines()), *nodes]) + "\n"


def _dismiss(guarding: subprocess.Popen[bytes]) -> None:
    assert guarding.stdin is not None
    guarding.stdin.close()
    guarding.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _munged(stack: ExitStack, folder: Path, environment: dict[str, str]) -> None:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    names = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed"}
    options = [f"--{option}={folder / name}" for option, name in names.items()]
    _daemon(stack, folder, environment, "munged", "--foreground", "--force", *options)
    until((folder / "munge.socket").exists, 10.0, lambda: _logs(folder))


def _daemon(stack: ExitStack, folder: Path, environment: dict[str, str], name: str, *options: str) -> None:
    """In the foreground, as our child; ended when the stack is left."""
    log = stack.enter_context((folder / "log" / name).open("ab"))
    process = subprocess.Popen([name, *options], env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    stack.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _idle(cluster: Cluster) -> bool:
    found = cluster.try_to("sinfo", "--noheader", "--partition=work", "--states=idle", "--format=%D")
    return found.stdout.strip() == str(len(NODES))


def _cancel_all(cluster: Cluster) -> None:
    for state in ("PENDING", "RUNNING"):  # in this order: none shall start in the place of another
        cluster.try_to("scancel", "--user=root", f"--state={state}")


def _logs(folder: Path) -> str:
    return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted((folder / "log").iterdir()))
