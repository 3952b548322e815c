"""A running SLURM as the tests talk to it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cluster:
    """A running cluster: partition `work`, and `urgent`, whose jobs preempt those of `work`."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: object) -> str:
        """stdout of a command that succeeds."""
        done = self.try_to(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def try_to(self, *words: object) -> subprocess.CompletedProcess[str]:
        """A command that may come too late."""
        command = [str(word) for word in words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, …"""
        return self.fields(job)["JobState"]

    def fields(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        words = self.run("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.partition("=")[::2] for word in words)  # type: ignore[misc]

    def wait(self, job: str, wanted: str = "COMPLETED", timeout_s: float = 300.0) -> None:
        """Until a job has ended in this state; a job that waits after it was put back is started."""

        def ended() -> bool:
            state = self.state(job)
            if state == "PENDING" and self.fields(job)["Restarts"] != "0":  # SLURM itself waits for two minutes
                time.sleep(3)  # in the same second it would be refused: "Job credential revoked"
                self.try_to("scontrol", "update", f"JobId={job}", "StartTime=now")
            return state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")

        until(ended, timeout_s, lambda: self.story(job))
        assert self.state(job) == wanted, self.story(job)

    def output(self, job: str) -> str:
        """What the job wrote."""
        path = Path(self.fields(job)["StdOut"])
        return path.read_text() if path.exists() else ""

    def story(self, job: str) -> str:
        """For error messages."""
        log = (self.folder / "log" / "slurmctld").read_text().splitlines()[-20:]
        return "\n".join([self.run("scontrol", "show", "job", job), self.output(job), *log])


def until(happened: Callable[[], bool], timeout_s: float, story: Callable[[], str]) -> None:
    """Wait for something.

    Raises:
        AssertionError: it did not happen; with the story.
    """
    deadline_s = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline_s, f"nothing after {timeout_s:g} s:\n{story()}"
        time.sleep(0.1)
