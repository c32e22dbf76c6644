"""What is checked before something is committed, and of a shard that another writer committed first."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from . import shards
from .buffer import UnitBuffer
from .codecs import Encoding
from .documents import FileRecord, Unit
from .errors import InvalidInput, NonFinite, StoreCorrupt, StoreStale
from .examples import ExampleTable
from .readers.chunks import ChunkReader
from .readers.contract import Files

_SHOWN: Final = 3


def refuse_misfits(buffer: UnitBuffer, table: ExampleTable) -> None:
    """Raise NonFinite, naming the tap and the first examples, where values did not fit the encoding."""
    for (stream, tap), misfit in sorted(buffer.misfits.items()):
        name = buffer.plans[stream, tap].path
        examples = _examples_of_rows(table, buffer.unit, stream, np.asarray(misfit.rows, dtype=np.int64))
        raise NonFinite(
            f"{name}: {misfit.told()} values do not fit {buffer.encoding.name}, first in examples "
            f"{', '.join(map(repr, examples))}: {misfit.advice()}"
        )


def refuse_gaps(buffer: UnitBuffer, table: ExampleTable) -> None:
    """Raise InvalidInput where the rows that were put are not exactly those of the unit's examples."""
    offsets: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    for (stream, tap), written in buffer.written.items():
        if stream not in offsets:
            offsets[stream] = _segments(table, buffer.unit, stream)
        starts, lengths = offsets[stream]
        expected = np.zeros(len(written) + 1, dtype=np.int64)
        local = starts - buffer.first_row(stream, tap)
        np.add.at(expected, local, 1)
        np.add.at(expected, local + lengths, -1)
        if not np.array_equal(np.cumsum(expected[:-1]) > 0, written):
            raise InvalidInput(
                f"{buffer.plans[stream, tap].path}: the rows put into unit {buffer.unit.name} are not "
                "the rows of its examples"
            )


def _segments(table: ExampleTable, unit: Unit, stream: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    columns = table.read_unit(unit.index, [f"{stream}_offset", f"{stream}_length"])
    offsets, lengths = (
        column.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.int64) for column in columns.columns
    )
    return offsets, lengths


def _examples_of_rows(table: ExampleTable, unit: Unit, stream: str, rows: NDArray[np.int64]) -> list[str]:
    columns = table.read_unit(unit.index, ["source_id", f"{stream}_offset"])
    ids = columns.column("source_id").to_pylist()
    starts = [(offset, row) for row, held in enumerate(columns.column(1).to_pylist()) for offset in held]
    first_rows = np.asarray([offset for offset, _ in starts], dtype=np.int64)
    found = [ids[starts[place][1]] for place in np.searchsorted(first_rows, rows, side="right") - 1]
    return list(dict.fromkeys(found))[:_SHOWN]


def whole_shard(files: Files, path: str, chunks: int, slots: int, chunk_bytes: int, stored: Encoding) -> bool:
    """Whether a shard file holds `chunks` chunks, of `chunk_bytes` each before compression, whose checksums match."""
    out = np.empty(chunk_bytes + shards.CRC_BYTES, dtype=np.uint8)
    chunk_reader = ChunkReader(files, stored)
    try:
        if not stored.compressed and files.size(path) != shards.shard_bytes(chunks, chunk_bytes, slots):
            return False
        for slot in range(chunks):
            chunk_reader.read(path, slot, slots, out, verify=True)
    except StoreCorrupt:
        return False
    return True


def refuse_other(path: Path, planned: FileRecord | None, made: FileRecord) -> None:
    """Raise StoreStale where a file that was made again is not the one that the plan names."""
    if planned != made:
        raise StoreStale(
            f"{path}: what would be written now differs from the plan, which was "
            "begun with other versions of zarr or pyarrow: begin the store again in another folder"
        )
