"""Merges models on disk: everything is checked first (`plan`), then tensors stream through in rows.

Peak memory is a chosen constant. A merge that was interrupted continues with the next file; if its inputs or its
configuration changed in between, it starts anew.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from megatron_aqaa import platform
from megatron_aqaa.checkpoint import safetensors_directory, torch_dist_directory
from megatron_aqaa.checkpoint.merge.parameters import METHODS
from megatron_aqaa.checkpoint.merge.plan import MergePlan, merge_digest
from megatron_aqaa.checkpoint.merge.record import merge_record
from megatron_aqaa.checkpoint.merge.rows import ModelRows, Stopped, merge_region
from megatron_aqaa.checkpoint.merge.state import RECORD, STATE, Digests, earlier_merge
from megatron_aqaa.checkpoint.output_directory import alone_in
from megatron_aqaa.checkpoint.output_files import (
    OutputFile,
    Region,
    byte_counter,
    region_name,
    region_threads,
    written_whole,
)
from megatron_aqaa.checkpoint.stored_tensors import MappedFiles
from megatron_aqaa.whole_file import partial_path, write_json

MARKERS = (*safetensors_directory.MARKERS, *torch_dist_directory.MARKERS)


def run_merge(plan: MergePlan, on_progress: Callable[[int], Any] = lambda done_bytes: None) -> dict[str, Any]:
    """Merge what is not yet done.

    Args:
        plan: from `plan_merge`.
        on_progress: called with the bytes written so far, by several threads but one at a time.

    Returns:
        The record, which is also written to `merge_record.json`.

    Raises:
        ValueError: NaN, infinity or unequal integers in a model, values too large for the result's dtype, a model that
            changed meanwhile, or another merge at work in the output; what is finished stays for the next run.
    """
    if not plan.is_complete:
        plan.output.mkdir(parents=True, exist_ok=True)
        with alone_in(plan.output):
            if earlier_merge(plan.output, plan.digest, plan.files, plan.names_beside) != (plan.done, plan.replaced):
                raise ValueError(f"{plan.output}: another merge has written here meanwhile; run the same command again")
            _run(plan, on_progress)
    (plan.output / STATE).unlink(missing_ok=True)
    record: dict[str, Any] = json.loads((plan.output / RECORD).read_text())
    return record


def _run(plan: MergePlan, on_progress: Callable[[int], Any]) -> None:
    _clear(plan)
    plan.layout.prepare(plan.output, plan.tensors, plan.donor.beside)
    platform.keep_freed_memory()
    done = dict(plan.done)
    advance = byte_counter(plan.done_bytes, on_progress)
    mapped = MappedFiles()
    for file in plan.files:
        if file.name not in done:
            done[file.name] = _write_file(plan, file, mapped, advance)
            write_json(plan.output / STATE, _note(plan, done))
            mapped.release()
    if merge_digest(plan.config, plan.models, plan.files, plan.seed) != plan.digest:
        raise ValueError("a model was changed while it was merged; run the same command again, which starts anew")
    plan.layout.finish(plan.output, plan.files, plan.tensors, plan.donor.beside)
    write_json(plan.output / RECORD, _note(plan, done) | merge_record(plan, done))


def _clear(plan: MergePlan) -> None:
    """Remove what an earlier run left and does not count any more.

    The new note comes first, and names the old files too: a kill at any point leaves none that nobody knows.
    """
    write_json(plan.output / STATE, _note(plan, plan.done, plan.replaced))
    (plan.output / RECORD).unlink(missing_ok=True)
    for name in (*MARKERS, *plan.replaced):
        (plan.output / name).unlink(missing_ok=True)
        partial_path(plan.output / name).unlink(missing_ok=True)


def _note(plan: MergePlan, done: dict[str, Digests], replaced: Iterable[str] = ()) -> dict[str, Any]:
    names = dict.fromkeys([*(file.name for file in plan.files), *plan.names_beside, *replaced])
    return {"digest": plan.digest, "files": list(names), "done": done}


def _write_file(plan: MergePlan, file: OutputFile, mapped: MappedFiles, advance: Callable[[int], None]) -> Digests:
    """One file; regions side by side, the largest first, one thread each."""
    largest_first = sorted(file.regions, key=lambda region: -region.box.num_elements)
    with written_whole(plan.output / file.name, file) as descriptor, region_threads(plan.workers) as (pool, stop):
        futures = {
            region_name(region): pool.submit(_merge_region, plan, region, mapped, descriptor, stop, advance)
            for region in largest_first
        }
        return {name: future.result() for name, future in futures.items()}


def _merge_region(
    plan: MergePlan,
    region: Region,
    mapped: MappedFiles,
    descriptor: int,
    stop: threading.Event,
    advance: Callable[[int], None],
) -> list[str]:
    dtype = plan.tensors[region.tensor].dtype
    rows = ModelRows(mapped, plan.models, region, plan.block_elements, _row_dtype(plan, region.tensor), stop)
    try:
        return merge_region(rows, functools.partial(_merge, plan, region), dtype, descriptor, advance)
    except Stopped:  # the error of the other region is the one to tell
        return []
    except BaseException:
        stop.set()
        raise


def _merge(plan: MergePlan, region: Region, rows: ModelRows) -> Iterator[torch.Tensor]:
    settings = dict(plan.settings[region.tensor])
    if plan.config.merge_method.startswith("dare"):
        settings["seed"] = f"{plan.seed}/{region_name(region)}"
    merged: Iterator[torch.Tensor] = METHODS[plan.config.merge_method](rows, **settings)
    return merged


def _row_dtype(plan: MergePlan, tensor: str) -> torch.dtype:
    """float32, or wider where something is; integers stay what they are."""
    dtype = plan.tensors[tensor].dtype
    if not dtype.is_floating_point:
        return dtype
    dtypes = [dtype, *(model.tensors[tensor].dtype for model in plan.models)]
    return torch.float64 if torch.float64 in dtypes else torch.float32
