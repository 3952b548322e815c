"""A chain of commands that need each other: each runs once, side by side where cores allow.

A finished stage leaves `<run>/stages/<name>.json` with a digest of its command, its configuration file and the
digests of the stages it needs. The same digest is not run again; another one clears the stage's outputs first.
An interrupted stage leaves no record and is started again; its own tool then continues where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from megatron_aqaa import platform
from megatron_aqaa.training.run_lock import locked
from megatron_aqaa.training.stages import ChainConfig, Stage, check_needs, reduced

_FULL_BYTES = 16 << 20  # less free space than this counts as a full disk


class StageFailed(RuntimeError):
    """A stage ended with an error; the message holds the end of its log."""


@dataclass
class _Running:
    stage: Stage
    process: subprocess.Popen[bytes]
    log: Path
    file: IO[bytes]
    started_s: float = field(default_factory=time.monotonic)


class Chain:
    """Runs the stages of `config` in `run`.

    Args:
        config: the stages.
        run: directory for outputs, logs and records.
        quick: the reduced run.
        seed: of data, weights and batches, handed to the stages that name it.
    """

    def __init__(self, config: ChainConfig, run: Path, quick: bool = False, seed: int = 0) -> None:
        check_needs(config)
        config = reduced(config) if quick else config
        self.config, self.run_directory, self.quick, self.seed = config, run, quick, seed
        self.stages = {stage.name: stage for stage in config.stages}
        self.digests: dict[str, str] = {}
        for stage in config.stages:
            self.digests[stage.name] = self._digest(stage)

    def run(self) -> list[dict[str, Any]]:
        """Run what is not finished; returns one record a stage: name, seconds, status, digest.

        Raises:
            ValueError: another run is at work in the directory, or one that has not begun would not fit the disk.
            StageFailed: a command ended with a non-zero code; the others are stopped cleanly.
            KeyboardInterrupt: after ctrl-C, SIGTERM or the terminal's end was passed on and every command has saved and
                ended.
        """
        (self.run_directory / "stages").mkdir(parents=True, exist_ok=True)
        (self.run_directory / "logs").mkdir(exist_ok=True)
        self._check_disk()
        with locked(self.run_directory) as self._lock, _as_interrupts(signal.SIGTERM, signal.SIGHUP):
            self._run_stages()
        return [self._record(stage) for stage in self.config.stages]

    def _run_stages(self) -> None:
        waiting = [stage for stage in self.config.stages if not self._finished(stage)]
        for name in self.stages.keys() - {stage.name for stage in waiting}:
            print(f"{name}: finished earlier, kept")
        running: list[_Running] = []
        shown_s = time.monotonic()
        try:
            while waiting or running:
                waiting = self._start_ready(waiting, running)
                time.sleep(0.1)
                running = [job for job in running if not self._collect(job)]
                if time.monotonic() - shown_s > 15:
                    shown_s = time.monotonic()
                    self._show(waiting, running)
        except BaseException:
            _stop(running)
            raise

    def _start_ready(self, waiting: list[Stage], running: list[_Running]) -> list[Stage]:
        """Start every stage whose needs are met while cores are free; returns those still waiting."""
        still_waiting = []
        unfinished = {stage.name for stage in waiting} | {job.stage.name for job in running}
        for stage in waiting:
            free = self.config.cores - sum(job.stage.cores for job in running)
            fits = stage.cores <= free or not running  # a stage that wants more than there is runs alone
            if fits and unfinished.isdisjoint(stage.needs + stage.after):
                running.append(self._start(stage))
            else:
                still_waiting.append(stage)
        return still_waiting

    def _start(self, stage: Stage) -> _Running:
        record = self.run_directory / "stages" / f"{stage.name}.json"
        if record.exists():  # finished earlier with other settings: nothing of that may leak into this run
            record.unlink()
            for output in stage.outputs:
                _remove(self.run_directory / output)
        log = self.run_directory / "logs" / f"{stage.name}.log"
        file = log.open("wb")
        command = [sys.executable if word == "python" else word for word in self._command(stage)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        print(f"{stage.name}: started (usually {self._expected_s(stage):.0f} s)", flush=True)
        # a session of its own, so that ctrl-C reaches it once, from here
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            pass_fds=(self._lock,),
        )
        return _Running(stage, process, log, file)

    def _collect(self, job: _Running) -> bool:
        """True once the job has ended; writes its record."""
        code = job.process.poll()
        if code is None:
            return False
        job.file.close()
        seconds = time.monotonic() - job.started_s
        if code != 0:
            tail = "\n".join(job.log.read_text(errors="replace").splitlines()[-25:])
            raise StageFailed(
                f"stage {job.stage.name} ended with code {code}; the end of {job.log}:\n{tail}{self._disk_hint()}"
            )
        record = {
            "name": job.stage.name,
            "seconds": round(seconds, 1),
            "status": "finished",
            "digest": self.digests[job.stage.name],
        }
        path = self.run_directory / "stages" / f"{job.stage.name}.json"
        path.write_text(json.dumps(record))
        print(f"{job.stage.name}: finished in {seconds:.0f} s", flush=True)
        return True

    def _check_disk(self) -> None:
        free_gb = shutil.disk_usage(self.run_directory).free / 1e9
        begun = any((self.run_directory / "stages").iterdir())
        if not begun and free_gb < self.config.disk_gb:
            raise ValueError(
                f"{self.run_directory}: {free_gb:.1f} GB are free on this disk, the run wants {self.config.disk_gb} GB;"
                " free some, or run elsewhere"
            )

    def _disk_hint(self) -> str:
        """What to add where a full disk is the likely reason: libraries seldom say it."""
        if shutil.disk_usage(self.run_directory).free > _FULL_BYTES:
            return ""
        return "\nthe disk is full: free some space and run the same command; what is finished is kept"

    def _show(self, waiting: list[Stage], running: list[_Running]) -> None:
        now = time.monotonic()
        left = {s.name: self._expected_s(s) * s.cores for s in waiting}
        for job in running:
            left[job.stage.name] = max(self._expected_s(job.stage) - (now - job.started_s), 1.0) * job.stage.cores
            print(f"  {_last_line(job.log) or job.stage.name}")
        print(
            f"  … {len(waiting)} stages to come, about {sum(left.values()) / self.config.cores / 60:.1f} min left",
            flush=True,
        )

    def _finished(self, stage: Stage) -> bool:
        path = self.run_directory / "stages" / f"{stage.name}.json"
        present = all((self.run_directory / output).exists() for output in stage.outputs)
        return path.exists() and present and json.loads(path.read_text())["digest"] == self.digests[stage.name]

    def _record(self, stage: Stage) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.run_directory / "stages" / f"{stage.name}.json").read_text())
        return record

    def _command(self, stage: Stage) -> list[str]:
        words = stage.command + ((stage.quick or ()) if self.quick else ())
        values = {
            "{run}": str(self.run_directory),
            "{processes}": str(platform.local_processes()),
            "{seed}": str(self.seed),
        }
        for name, value in values.items():
            words = tuple(word.replace(name, value) for word in words)
        return list(words)

    def _expected_s(self, stage: Stage) -> float:
        return stage.quick_expected_s if self.quick else stage.expected_s

    def _digest(self, stage: Stage) -> str:
        digest = hashlib.sha256("\0".join(self._command(stage)).encode())
        for word in stage.command:
            if word.endswith(".yaml") and Path(word).is_file():
                digest.update(Path(word).read_bytes())
        for need in stage.needs:
            if need not in self.digests:
                raise ValueError(f"stage {stage.name}: must come after {need!r}, which it needs")
            digest.update(self.digests[need].encode())
        return digest.hexdigest()[:16]


@contextmanager
def _as_interrupts(*signals: signal.Signals) -> Iterator[None]:
    """These signals end us as ctrl-C does: stages, in sessions of their own, would outlive a parent that just dies."""
    heeded = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]  # `nohup` ignores one
    before = {number: signal.signal(number, signal.default_int_handler) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(running: list[_Running]) -> None:
    """Ask every command to save and end, once; wait for it; kill what does not end within a minute."""
    for job in running:
        if job.process.poll() is None:
            os.killpg(job.process.pid, signal.SIGINT)
    deadline_s = time.monotonic() + 60
    for job in running:
        try:
            job.process.wait(timeout=max(0.1, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(job.process.pid, signal.SIGKILL)
        job.file.close()


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 1000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").strip().splitlines()
    return lines[-1][:150] if lines else ""


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
