"""Writes one planned file of a conversion: block by block from its pieces, digested on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from megatron_aqaa.checkpoint.checksums import DigestedRegion, FileRecord, file_record
from megatron_aqaa.checkpoint.conversion.plan import Conversion
from megatron_aqaa.checkpoint.elements import tensor_bytes
from megatron_aqaa.checkpoint.output_files import OutputFile, Region, region_name, region_threads, written_whole
from megatron_aqaa.checkpoint.stored_tensors import MappedFiles


@dataclass
class FileWriter:
    """Writes files of a conversion.

    Attributes:
        conversion: that was planned.
        workers: threads.
        block_bytes: of a block.
        advance: called with the number of bytes after each block, by several threads.
    """

    conversion: Conversion
    workers: int
    block_bytes: int
    advance: Callable[[int], None]

    def write(self, file: OutputFile) -> FileRecord:
        """One file; its regions side by side, the largest first, one thread each.

        Raises:
            ValueError: a value does not fit its dtype; names source and tensor.
            OSError: of the disk; names file, and tensor where it was one.
        """
        path, mapped = self.conversion.work / file.name, MappedFiles()
        largest_first = sorted(file.regions, key=lambda region: -region.box.num_elements)
        try:
            with written_whole(path, file) as descriptor, region_threads(self.workers) as (pool, stop):
                futures = [pool.submit(self._region, it, descriptor, mapped, stop) for it in largest_first]
                return file_record(file, [future.result() for future in futures])
        except OSError as error:
            where = f"{path} ({error.filename})" if error.filename else str(path)
            raise OSError(error.errno, f"{error.strerror}, writing", where) from error

    def _region(
        self, region: Region, descriptor: int, mapped: MappedFiles, stop: threading.Event
    ) -> tuple[str, int, int, str]:
        tensor = self.conversion.tensors[region.tensor]
        output = DigestedRegion(descriptor, region.start)
        try:
            for box in region.box.blocks(max(1, self.block_bytes // tensor.dtype.itemsize)):
                if stop.is_set():
                    break  # the error of another region is the one to tell
                data = tensor_bytes(self.conversion.pieces[region.tensor].read(box, tensor.dtype, mapped))
                output.write(data)
                self.advance(len(data))
        except ValueError as error:
            raise ValueError(f"{self.conversion.source}: {region.tensor} {error}") from error
        except OSError as error:
            raise OSError(error.errno, error.strerror, region.tensor) from error
        num_bytes = region.box.num_elements * tensor.dtype.itemsize
        return region_name(region), region.start, num_bytes, output.hexdigest()
