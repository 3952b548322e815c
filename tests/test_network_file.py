"""Network files: what was saved comes back; what is wrong is said."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from megatron_aqaa.network_file import load_network, save_network, save_whole


@dataclass(frozen=True)
class Config:
    width: int


@dataclass(frozen=True)
class Narrower:
    height: int = 1


class Network(torch.nn.Linear):
    def __init__(self, config: Config, names: list[str]) -> None:
        super().__init__(config.width, len(names))
        self.config, self.names = config, names


class Other(torch.nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()


def test_a_network_comes_back_as_it_was(tmp_path: Path) -> None:
    network = Network(Config(3), ["a", "b"])
    path = tmp_path / "new" / "network.pt"
    save_network(network, path, names=network.names)
    loaded = load_network(Network, Config, path, "tools/x.py")
    assert loaded.names == ["a", "b"] and loaded.weight.equal(network.weight) and not loaded.training
    assert [file.name for file in path.parent.iterdir()] == ["network.pt"]


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    with pytest.raises(ValueError, match=r"network.pt: no such file; tools/x.py makes it"):
        load_network(Network, Config, path, "tools/x.py")
    path.write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"network.pt: not a Network: .*; tools/x.py makes it"):
        load_network(Network, Config, path, "tools/x.py")
    save_network(Network(Config(3), ["a"]), path, names=["a"])
    with pytest.raises(ValueError, match=r"network.pt: not a Other"):
        load_network(Other, Config, path, "tools/x.py")
    with pytest.raises(ValueError, match=r"network.pt: unknown key width.*another version, tools/x.py makes it anew"):
        load_network(Network, Narrower, path, "tools/x.py")


def test_a_full_disk_is_told_and_what_was_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_whole({"step": 1}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # as a disk with 4 KiB left
    try:
        with pytest.raises(OSError, match=r"checkpoint.pt: cannot be written .* is the disk full"):
            save_whole({"weights": torch.randn(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.load(path) == {"step": 1} and [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
