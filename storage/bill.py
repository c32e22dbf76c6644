"""What a store takes on disk, told before anything is written: exact for arrays, close for the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from . import shards
from .codecs import encoding
from .documents import Plan, Receipt, ShardRecord, SplitPlan, Unit, shard_path

# Measured on tables and documents of this package; they are a small part of any store of real width.
_TABLE_BYTES_PER_EXAMPLE: Final = 60
_TABLE_BYTES_PER_TOKEN: Final = 2
_ZARR_BYTES_PER_ARRAY: Final = 1_700
_ZARR_BYTES_PER_CHANNEL: Final = 46  # shift and scale of an int8 channel, in the array's document and in the root's
_DIGEST: Final = "0" * 64
_CHECKSUM: Final = (1 << 32) - 1


@dataclass(frozen=True)
class Bill:
    """Bytes on disk. fill_bytes is the part of the arrays that holds no value; it is counted in them.

    at_most: arrays are compressed, so that their bytes, and fill and total with them, are what they take at most.
    """

    arrays: dict[str, int]
    fill_bytes: int
    table: int
    files: int
    documents: int
    total: int
    file_count: int
    at_most: bool = False


def store_bytes(plan: Plan, *, files: Mapping[str, int] | None = None) -> Bill:
    """The bill of a plan: exact for the bytes of arrays, or their upper bound where they are compressed.

    files: bytes of blobs by path, for a plan that does not name them yet. Example tables that do not exist
    yet are estimated from their examples and tokens.
    """
    stored = encoding(plan.encoding)
    arrays: dict[str, int] = {}
    fill = 0
    shard_count = 0
    for array in plan.arrays():
        row_bytes = array.stored_width * stored.itemsize
        chunk_bytes = stored.stored_bytes(array.stream_plan.chunk_rows * row_bytes)
        slots = array.split_plan.groups_per_unit
        units = array.split_plan.units(array.split)
        arrays[array.path] = sum(shards.shard_bytes(unit.groups, chunk_bytes, slots) for unit in units)
        held = array.split_plan.held_groups * array.stream_plan.chunk_rows
        fill += (held - array.stream_plan.tokens) * row_bytes
        shard_count += len(units)
    blobs = {path: record.bytes for path, record in plan.files.items()} or dict(files or {})
    table = sum(_table_bytes(split, name) for name, split in plan.splits.items())
    groups = len(plan.splits) + sum(len(split.streams) for split in plan.splits.values())
    documents = _document_bytes(plan, len(arrays))
    file_count = (
        shard_count
        + len(blobs)
        + len(plan.tables())
        + len(plan.units())
        + len(arrays)
        + groups
        + len(("root", "plan", "manifest"))
    )
    total = sum(arrays.values()) + sum(blobs.values()) + table + documents
    return Bill(arrays, fill, table, sum(blobs.values()), documents, total, file_count, stored.compressed)


def unit_bytes(plan: Plan, units: Sequence[Unit]) -> tuple[int, int]:
    """Bytes and number of the shards of some units: exact, or their upper bound where they are compressed."""
    stored = encoding(plan.encoding)
    sizes = [
        shards.shard_bytes(
            unit.groups,
            stored.stored_bytes(array.stream_plan.chunk_rows * array.stored_width * stored.itemsize),
            array.split_plan.groups_per_unit,
        )
        for array in plan.arrays()
        for unit in units
        if unit.split == array.split
    ]
    return sum(sizes), len(sizes)


def _table_bytes(split: SplitPlan, name: str) -> int:
    known = [table.record.bytes for table in split.tables(name) if table.record is not None]
    absent = sum(unit.examples for table in split.tables(name) if table.record is None for unit in table.units)
    tokens = sum(stream.tokens for stream in split.streams.values()) * absent // split.examples
    return sum(known) + absent * _TABLE_BYTES_PER_EXAMPLE + tokens * _TABLE_BYTES_PER_TOKEN


def _document_bytes(plan: Plan, arrays: int) -> int:
    zarr = sum(record.bytes for record in plan.metadata.values()) or arrays * _ZARR_BYTES_PER_ARRAY + sum(
        array.width * _ZARR_BYTES_PER_CHANNEL for array in plan.arrays() if array.stream_plan.calibration
    )
    receipts = 0
    for name, split in plan.splits.items():
        paths = [array.path for array in plan.arrays() if array.split == name]
        for unit in split.units(name):
            records = {
                path: ShardRecord(
                    path=shard_path(path, unit.index),
                    bytes=1 << 24,
                    sha256=_DIGEST,
                    rows=1 << 14,
                    crc32c=(_CHECKSUM,) * unit.groups,
                )
                for path in paths
            }
            sample = Receipt(plan=_DIGEST, unit=unit.name, split=name, index=unit.index, arrays=records)
            receipts += len(sample.to_bytes()) * len(split.units(name))
            break
    manifest = 500 + 90 * len(plan.units()) + sum(len(array.path) + 24 for array in plan.arrays())
    return zarr + receipts + manifest + len(plan.to_bytes())
