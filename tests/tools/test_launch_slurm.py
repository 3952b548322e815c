"""`tools/launch_slurm.py` as a user meets it, where there is no SLURM."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.slurm.launch import ROOT, command

DOCUMENT = ROOT / "docs" / "slurm.md"


def launch(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    return command(list(words), {"PATH": "/nowhere"})


def test_the_commands_of_the_document_render() -> None:
    commands = re.findall(r"^python tools/launch_slurm.py (.*)$", DOCUMENT.read_text(), re.MULTILINE)
    assert len(commands) >= 5
    for line in commands:
        words = re.sub(r"--dry-run|--write \S+", "", line).split()
        code, said, error = launch(*words, "--dry-run")
        assert code == 0, f"{line}: {error}"
        assert said.startswith("# sbatch ")


def test_the_launch_file_of_the_document_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / "launch.yaml").write_text(text)
    code, said, error = launch(str(tmp_path / "launch.yaml"), "--dry-run", "--no-requeue")
    assert code == 0, error
    assert "#SBATCH --no-requeue" in said


def test_a_chain_tells_what_waits_for_what() -> None:
    code, said, error = launch("--chain", "examples/slurm/tiny_cpu_chain.yaml", "--dry-run")
    assert code == 0, error
    wanted = "# sbatch --dependency=afterok:<job tiny_cpu_sft2>:<job tiny_cpu_dpo> --kill-on-invalid-dep=yes"
    assert f"{wanted} tiny_cpu_merge.sbatch" in said


def test_batch_files_are_written_where_asked(tmp_path: Path) -> None:
    code, said, error = launch("examples/slurm/prepare_chat.yaml", "--array", "3", "--write", str(tmp_path))
    assert code == 0, error
    assert said.split() == [f"{tmp_path}/prepare_chat_shards.sbatch", f"{tmp_path}/prepare_chat.sbatch"]
    assert "num_shards=3" in (tmp_path / "prepare_chat_shards.sbatch").read_text()
    assert "shard=" not in (tmp_path / "prepare_chat.sbatch").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slurm.nodes=3"], "3 nodes × 2 processes = 6 cannot hold copies of a model over 4"),
        (["slurm.node=3"], "did you mean slurm.nodes?"),
        (["command=[tools/train.py, nowhere.yaml]"], "nowhere.yaml: no such file"),
        (["command=[tools/train.py, examples/tiny_cpu/sft.yaml, training.step=1]"], "did you mean training.steps?"),
        (["command=[tools/train.py]"], "command names no YAML file"),
        (["--array", "4"], "tools/train.py has no shards"),
        ([], "sbatch: not found; submit where SLURM is"),
    ],
)
def test_mistakes_are_named_with_code_2(words: list[str], message: str) -> None:
    code, _, error = launch("examples/slurm/tiny_cpu.yaml", *words)
    assert code == 2
    assert message in error
    assert error.startswith("launch_slurm: ")
