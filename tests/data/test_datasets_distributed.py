"""Datasets under a process group: rank 0 writes Megatron's index cache, the others read it, all see the same."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_aqaa.data.datasets import DataConfig, build_dataset
from megatron_aqaa.data.indexed import DocumentWriter
from megatron_aqaa.vocabulary import Vocabulary

pytestmark = pytest.mark.distributed

VOCABULARY = Vocabulary.for_text(160)


def write(prefix: Path, seed: int) -> str:
    random = np.random.default_rng(seed)
    with DocumentWriter(prefix, VOCABULARY) as writer:
        for _ in range(40):
            writer.add(random.integers(10, VOCABULARY.audio_stop, random.integers(5, 30)))
    return str(prefix)


def digest(config: DataConfig) -> str:
    dataset = build_dataset(config, VOCABULARY, 30, seed=2)
    return hashlib.sha256(b"".join(dataset[i]["token_ids"].numpy().tobytes() for i in range(30))).hexdigest()


def report(rank: int, folder: Path, config: DataConfig) -> None:
    """What one of two ranks sees."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    (folder / f"rank{rank}").write_text(digest(config))
    torch.distributed.destroy_process_group()


def run(folder: Path, config: DataConfig) -> set[str]:
    (folder / "meet").unlink(missing_ok=True)
    torch.multiprocessing.start_processes(report, (folder, config), nprocs=2, start_method="fork")
    return {(folder / f"rank{rank}").read_text() for rank in range(2)}


@pytest.mark.parametrize("packing", ["cut", "whole"])
def test_ranks_agree_with_one_another_and_with_one_process(tmp_path: Path, packing: str) -> None:
    train = {write(tmp_path / "a", 1): 2.0, write(tmp_path / "b", 2): 1.0}
    config = DataConfig(train, 16 if packing == "cut" else 32, packing, cache_directory=tmp_path / "cache")
    alone = digest(config)
    assert run(tmp_path, config) == {alone}
    assert (tmp_path / "cache").exists()
    assert run(tmp_path, config) == {alone}  # now from the cache


def test_data_written_anew_does_not_meet_the_old_cache(tmp_path: Path) -> None:
    train = {write(tmp_path / "a", 1): 1.0}
    config = DataConfig(train, 16, cache_directory=tmp_path / "cache")
    before = run(tmp_path, config)
    files = set(os.listdir(tmp_path / "cache"))
    write(tmp_path / "a", 7)
    assert run(tmp_path, config) == {digest(config)} != before
    assert files < set(os.listdir(tmp_path / "cache"))


def test_nothing_is_written_beside_the_data(tmp_path: Path) -> None:
    config = DataConfig({write(tmp_path / "a", 1): 1.0, write(tmp_path / "b", 2): 1.0}, 16)
    digest(config)
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.idx", "b.bin", "b.idx"]
