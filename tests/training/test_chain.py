"""The chain of stages: each once, again when its settings change, stopped and continued."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_aqaa.training.chain import Chain, StageFailed
from megatron_aqaa.training.run_lock import locked
from megatron_aqaa.training.stages import ChainConfig, Stage


def writes(name: str, needs: tuple[str, ...] = (), text: str = "x") -> Stage:
    """A stage that appends one line to its output each time it runs."""
    code = f"open(r'{{run}}/{name}.txt', 'a').write('{text}\\n')"
    return Stage(name, ("python", "-c", code), needs, outputs=(f"{name}.txt",))


def runs_of(directory: Path, name: str) -> list[str]:
    return (directory / f"{name}.txt").read_text().split()


def test_stages_run_once_and_in_order(tmp_path: Path) -> None:
    config = ChainConfig((writes("a"), writes("b", ("a",)), writes("c", ("a",))))
    first = Chain(config, tmp_path).run()
    Chain(config, tmp_path).run()
    assert [record["name"] for record in first] == ["a", "b", "c"]
    assert [runs_of(tmp_path, name) for name in "abc"] == [["x"]] * 3


def test_a_changed_stage_runs_again_with_what_needs_it(tmp_path: Path) -> None:
    Chain(ChainConfig((writes("a"), writes("b", ("a",)), writes("c"))), tmp_path).run()
    Chain(ChainConfig((writes("a", text="y"), writes("b", ("a",)), writes("c", text="x"))), tmp_path).run()
    assert runs_of(tmp_path, "a") == ["y"]  # the old output was cleared first
    assert runs_of(tmp_path, "b") == ["x"]
    assert runs_of(tmp_path, "c") == ["x"]


def test_a_lost_output_is_made_again(tmp_path: Path) -> None:
    config = ChainConfig((writes("a"),))
    Chain(config, tmp_path).run()
    (tmp_path / "a.txt").unlink()
    Chain(config, tmp_path).run()
    assert runs_of(tmp_path, "a") == ["x"]


def test_failure_shows_the_end_of_the_log(tmp_path: Path) -> None:
    bad = Stage("bad", ("python", "-c", "raise SystemExit('no such voice')"))
    with pytest.raises(StageFailed, match="stage bad ended with code 1(.|\n)*no such voice"):
        Chain(ChainConfig((bad,)), tmp_path).run()
    assert not (tmp_path / "stages" / "bad.json").exists()


def test_unknown_need_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stage b: needs 'z'"):
        Chain(ChainConfig((writes("b", ("z",)),)), tmp_path)


def test_the_seed_reaches_the_stages_that_name_it(tmp_path: Path) -> None:
    config = ChainConfig((writes("a", text="{seed}"), writes("b")))
    Chain(config, tmp_path).run()
    Chain(config, tmp_path, seed=3).run()
    assert runs_of(tmp_path, "a") == ["3"] and runs_of(tmp_path, "b") == ["x"]


def test_the_reduced_run_leaves_stages_out_and_what_needs_them_does_without(tmp_path: Path) -> None:
    stages = (writes("a"), replace(writes("b", ("a",)), quick=None), replace(writes("c", ("a", "b")), after=("b",)))
    reduced = Chain(ChainConfig(stages), tmp_path, quick=True).run()
    assert [record["name"] for record in reduced] == ["a", "c"]
    assert not (tmp_path / "b.txt").exists()
    Chain(ChainConfig(stages), tmp_path).run()
    assert runs_of(tmp_path, "b") == ["x"]
    with pytest.raises(ValueError, match="stage b: needs 'z'"):
        Chain(ChainConfig((replace(writes("b", ("z",)), quick=None),)), tmp_path, quick=True)


def test_a_disk_that_is_too_small_is_named_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"GB are free on this disk, the run wants 1000000000.0 GB"):
        Chain(ChainConfig((writes("a"),), disk_gb=1e9), tmp_path).run()
    assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_stages_first(tmp_path: Path, number: signal.Signals) -> None:
    work = "import time\ntry: open(r'{run}/begun', 'w').close(); time.sleep(60)\nfinally: "
    code = work + "open(r'{run}/saved', 'w').close()"
    stage = Stage("slow", ("python", "-c", code), outputs=("saved",))

    def interrupt() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        Chain(ChainConfig((stage,)), tmp_path).run()
    assert (tmp_path / "saved").exists()  # it was asked to end and did so before the chain returned
    assert not (tmp_path / "stages" / "slow.json").exists()


def test_a_stage_of_a_killed_run_keeps_the_next_one_out(tmp_path: Path) -> None:
    stage = ("python", "-c", "import time; open(r'{run}/begun', 'w').close(); time.sleep(60)")
    code = (
        "from pathlib import Path; from megatron_aqaa.training.chain import Chain;"
        "from megatron_aqaa.training.stages import ChainConfig, Stage;"
        f"Chain(ChainConfig((Stage('slow', {stage!r}),)), Path({str(tmp_path)!r})).run()"
    )
    killed = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "begun").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    try:
        with pytest.raises(ValueError, match="another run is at work here, or a stage of one that was killed"):
            Chain(ChainConfig((writes("a"),)), tmp_path).run()
    finally:
        (orphan,) = running_with(str(tmp_path))
        os.kill(orphan, signal.SIGKILL)
    wait_until_free(tmp_path)
    assert [record["name"] for record in Chain(ChainConfig((writes("a"),)), tmp_path).run()] == ["a"]


def wait_until_free(directory: Path) -> None:
    """A killed process leaves the process list before it lets go of its files, and of the lock with them."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with locked(directory):
                return
        except ValueError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def running_with(word: str) -> list[int]:
    """Other processes with `word` on their command line, which a zombie no longer has."""
    commands = {int(path.parent.name): path for path in Path("/proc").glob("[0-9]*/cmdline")}
    found = []
    for pid, path in commands.items():
        with contextlib.suppress(OSError):
            if word in path.read_text(errors="replace") and pid != os.getpid():
                found.append(pid)
    return found
