"""The files of examples/slurm/ are what the renderer makes of the launch files beside them."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "slurm"
CONFIGS = sorted(EXAMPLES.glob("*.yaml"))


@pytest.fixture(scope="module")
def rendered() -> dict[str, tuple[str, str]]:
    """Name of a batch file → its launch file and its text."""
    tool = runpy.run_path(str(ROOT / "tools" / "launch_slurm.py"))
    found: dict[str, tuple[str, str]] = {}
    for path in CONFIGS:
        name = str(path.relative_to(ROOT))
        for batch in tool["rendered"](name, [], is_chain="stages" in yaml.safe_load(path.read_text())):
            file = f"{batch.job.name}.sbatch"
            assert file not in found, f"{name} and {found[file][0]} have a job of one name"
            found[file] = name, batch.text
    return found


def test_there_is_one_batch_file_for_every_job(rendered: dict[str, tuple[str, str]]) -> None:
    assert {path.name for path in EXAMPLES.glob("*.sbatch")} == set(rendered)


def test_batch_files_are_what_the_renderer_makes(rendered: dict[str, tuple[str, str]]) -> None:
    for file, (config, text) in rendered.items():
        remedy = f"python tools/launch_slurm.py {config} --write examples/slurm"
        assert (EXAMPLES / file).read_text() == text, f"{file} is out of date: {remedy} (--chain for a chain)"


@pytest.mark.parametrize("name", ["tiny_cpu", "aqaa_3b", "aqaa_130b"])
def test_every_size_has_its_chain_from_pretraining_to_the_export(
    rendered: dict[str, tuple[str, str]], name: str
) -> None:
    pretraining = (f"pretrain_stage{number}" for number in (1, 2, 3))
    for stage in (*pretraining, "sft1", "sft2", "dpo", "merge", "export"):
        assert rendered[f"{name}_{stage}.sbatch"][0] == f"examples/slurm/{name}_chain.yaml"
