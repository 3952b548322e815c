"""`tools/demo.py` as a user meets it; the chain itself: tests/training/test_chain.py, tests/test_end_to_end.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

SLOW = """stages:
  - name: first
    command: [python, -c, "import time; time.sleep({seconds})"]
"""


def demo(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "tools/demo.py", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_missing_configuration_is_named() -> None:
    process = demo("--config", "nowhere.yaml")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "nowhere.yaml: no such configuration file" in errors


def test_ctrl_c_stops_the_stages_and_says_how_to_go_on(tmp_path: Path) -> None:
    config = tmp_path / "demo.yaml"
    config.write_text(SLOW.replace("{seconds}", "100"))
    process = demo("--config", str(config), "--run", str(tmp_path / "run"))
    assert process.stdout is not None
    assert "first: started" in process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command to continue" in errors


def test_failed_stage_gives_code_1_and_its_log(tmp_path: Path) -> None:
    config = tmp_path / "demo.yaml"
    config.write_text('stages:\n  - {name: bad, command: [python, -c, "raise SystemExit(3)"]}\n')
    process = demo("--config", str(config), "--run", str(tmp_path / "run"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stage bad ended with code 3" in errors
