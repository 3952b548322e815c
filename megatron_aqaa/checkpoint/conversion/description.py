"""A planned conversion in lines to read: exact bytes, files, parameters, and about how long it will take."""

from __future__ import annotations

import math
from collections.abc import Iterator

from megatron_aqaa.checkpoint.conversion.plan import Conversion

BYTES_PER_SECOND = 150e6
"""Of output, with reading and checksums: 7.06 GB in 43–68 s on two cores that others used too, 2026-11."""


def describe_plan(plan: Conversion, with_files: bool = False) -> Iterator[str]:
    """Lines about what will be written.

    Args:
        plan: the conversion.
        with_files: also every file and every tensor.
    """
    yield f"{plan.settings['verb']}: {plan.settings['source']} to {plan.output}"
    yield f"{len(plan.tensors)} tensors with {plan.num_parameters:,} elements"
    yield f"{plan.num_bytes:,} bytes in {len(plan.files)} file(s) of weights"
    yield f"about {math.ceil(plan.num_bytes / BYTES_PER_SECOND):,} s at {BYTES_PER_SECOND / 1e6:.0f} MB/s"
    yield from (f"note: {note}" for note in plan.notes)
    if with_files:
        for name, tensor in plan.tensors.items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            yield f"  {name} {list(tensor.shape)} {dtype} in {len(tensor.boxes)} part(s)"
        yield from (f"  {file.name} {file.size:,} bytes" for file in plan.files)
