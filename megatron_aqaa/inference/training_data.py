"""What is noted beside the data sets that a run was trained on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from megatron_aqaa.data.finished import record_of


def records_of_training(config_path: Path) -> list[dict[str, Any]]:
    """The notes of the training data of the run whose `config.yaml` this is; empty ones where there are none.

    Data sets are looked for where the run was trained, then where they lie now if the run was moved with its data.
    """
    config: dict[str, Any] = yaml.safe_load(config_path.read_text())
    data = config.get("data", {})
    directory = Path(data.get("directory", "."))
    if not directory.is_dir() and "run" in config:
        directory = config_path.parent / os.path.relpath(directory, config["run"])
    return [record_of(directory / prefix) for prefix in data.get("train", {})]
