"""The example table of a split: parquet, one row an example in written order, one row group a unit.

source_id, group_id, view, task, content_hash     where an example comes from
label, gold                                       its answer: a number, or the index of a segment (-1: none)
input_ids, token_type_ids, target_ids             its tokens; target_ids has one list a segment
<stream>_offset, <stream>_length                  where its segments lie: physical rows of the arrays
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .documents import FileRecord, Plan
from .errors import DataError, StoreCorrupt
from .layout import PackedSplit, segment_offsets
from .ragged import Ragged, cumulative
from .readers.contract import Files
from .readers.handle import FileHandle

_BLOCK_EXAMPLES: Final = 1 << 15
"""Of a column that is read whole, about so many are decoded at a time, or a unit of more."""
_COLUMNS: Final[tuple[tuple[str, Any, bool], ...]] = (
    ("source_id", pa.string(), False),
    ("group_id", pa.string(), True),
    ("view", pa.int16(), False),
    ("task", pa.string(), False),
    ("content_hash", pa.string(), False),
    ("label", pa.float64(), True),
    ("gold", pa.int32(), False),
    ("input_ids", pa.list_(pa.int32()), False),
    ("token_type_ids", pa.list_(pa.int8()), True),
    ("target_ids", pa.list_(pa.list_(pa.int32())), True),
)


def examples_schema(streams: Iterable[str]) -> pa.Schema:
    """The columns of an example table whose store has these streams."""
    fields = [pa.field(name, kind, nullable=null) for name, kind, null in _COLUMNS]
    for stream in sorted(streams):
        fields.append(pa.field(f"{stream}_offset", pa.list_(pa.int64()), nullable=False))
        fields.append(pa.field(f"{stream}_length", pa.list_(pa.int32()), nullable=False))
    return pa.schema(fields)


def placement_columns(packed: PackedSplit, first: int, count: int) -> dict[str, pa.Array]:
    """The offset and length columns of `count` examples of a packed split, from written position `first`
    on.
    """
    columns = {}
    for name, stream in packed.streams.items():
        starts = stream.lengths.starts()[first : first + count + 1]
        span = slice(int(starts[0]), int(starts[-1]))
        ends = pa.array(starts - starts[0], pa.int32())
        columns[f"{name}_offset"] = pa.ListArray.from_arrays(ends, pa.array(stream.offsets[span], pa.int64()))
        lengths = stream.lengths.values[span].astype(np.int32)
        columns[f"{name}_length"] = pa.ListArray.from_arrays(ends, pa.array(lengths, pa.int32()))
    return columns


def write_examples(
    file: BinaryIO, batches: Iterable[pa.RecordBatch], unit_examples: Sequence[int], streams: Iterable[str]
) -> None:
    """Write batches of examples, in written order, as a table with one row group a unit.

    Holds one unit of examples in memory. Raises DataError where columns or the number of examples are not as
    planned.
    """
    schema = examples_schema(streams)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        rest = schema.empty_table()
        source = iter(batches)
        for count in unit_examples:
            parts = [rest]
            held = rest.num_rows
            while held < count and (batch := next(source, None)) is not None:
                parts.append(_cast(batch, schema))
                held += batch.num_rows
            table = pa.concat_tables(parts)
            if held < count:
                raise DataError(f"examples end after {held} of the {count} that the next unit holds")
            writer.write_table(table.slice(0, count).combine_chunks(), row_group_size=count)
            rest = table.slice(count)
        if rest.num_rows or next(source, None) is not None:
            raise DataError(f"there are more examples than the {sum(unit_examples)} that were planned")


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    missing = set(schema.names) - set(batch.schema.names)
    extra = set(batch.schema.names) - set(schema.names)
    if missing or extra:
        raise DataError(f"example columns: missing {sorted(missing)}, not known {sorted(extra)}")
    try:
        return pa.Table.from_batches([batch]).select(schema.names).cast(schema)
    except (pa.ArrowInvalid, ValueError) as error:
        raise DataError(f"example columns: {error}") from None


def open_table(files: Files, plan: Plan, split: str) -> "ExampleTable":
    """The example table of a split of a store, its digest checked; one table where the split has grown, too."""
    split_plan = plan.splits[split]
    opened = []
    for table in split_plan.tables(split):
        size, sha256 = files.digest(table.path)
        if table.record != FileRecord(bytes=size, sha256=sha256):
            raise StoreCorrupt(f"{files.place(table.path)}: the example table is not the one that was committed")
        opened.append(
            TableFile(FileHandle(files, table.path, size), files.place(table.path), [u.examples for u in table.units])
        )
    return ExampleTable(
        opened, split_plan.group_examples, {name: stream.chunk_rows for name, stream in split_plan.streams.items()}
    )


@dataclass(frozen=True)
class TableFile:
    """One parquet file of an example table: a binary file, its place as messages show it, and examples by unit."""

    file: BinaryIO | FileHandle
    place: str
    unit_examples: Sequence[int]


class ExampleTable:
    """A split's examples.

    Lengths stay in memory (a few bytes an example), all else is read when asked for.
    """

    def __init__(
        self, tables: Sequence[TableFile], group_examples: Sequence[int], chunk_rows: Mapping[str, int]
    ) -> None:
        self._reading = threading.Lock()  # a ParquetFile is for one thread at a time
        self.first_examples: NDArray[np.int64] = cumulative(np.asarray(group_examples))
        """The example each row group begins with, then the number of examples: [groups + 1]."""
        self._chunk_rows = dict(chunk_rows)
        self._files = [_opened(table, chunk_rows) for table in tables]
        self._places = [table.place for table in tables]
        counts = [list(table.unit_examples) for table in tables]
        self._units = [(number, row) for number, held in enumerate(counts) for row in range(len(held))]
        self._unit_starts = cumulative(np.asarray([count for held in counts for count in held]))
        self.lengths: dict[str, Ragged] = {name: self._read_lengths(name) for name in chunk_rows}
        """Lengths of every segment by stream, in written order."""
        self._refuse_misfits()

    def __len__(self) -> int:
        return int(self.first_examples[-1])

    def offsets(self, stream: str) -> NDArray[np.int64]:
        """Physical row of every segment of a stream: [segments]."""
        return segment_offsets(self.lengths[stream], self.first_examples, self._chunk_rows[stream])

    @cached_property
    def label(self) -> NDArray[np.float64]:
        """Labels, NaN where there is none: [examples]."""
        column = self.column("label").to_numpy()
        return np.asarray(column, dtype=np.float64)

    @cached_property
    def gold(self) -> NDArray[Any]:
        """Index of each example's right segment, -1 where there is none: [examples], a small integer type."""
        column = np.asarray(self.column("gold").to_numpy(), dtype=np.int32)
        return column.astype(np.int8) if len(column) == 0 or int(column.max()) < 128 else column

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column. Raises DataError for one that does not exist."""
        names = self._files[0].schema_arrow.names
        if name not in names:
            raise DataError(f"column {name!r} does not exist: one of {', '.join(names)}")
        return pa.chunked_array([chunk for table in self._blocks(name) for chunk in table.column(0).chunks])

    def read_unit(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The examples of unit `index`."""
        number, row_group = self._units[index]
        with _readable(self._places[number]), self._reading:
            return self._files[number].read_row_group(row_group, columns=None if columns is None else list(columns))

    def rows(self, examples: NDArray[np.int64]) -> pa.Table:
        """Some examples, by their places in written order, in this order. Reads the units that hold them, one at a time."""
        units = np.searchsorted(self._unit_starts, examples, side="right") - 1
        parts = [self.read_unit(0).slice(0, 0)]
        for unit in np.unique(units).tolist():
            parts.append(self.read_unit(unit).take(examples[units == unit] - self._unit_starts[unit]))
        return pa.concat_tables(parts).take(np.argsort(np.argsort(units, kind="stable"), kind="stable"))

    def source_ids(self, first: int, stop: int) -> list[str]:
        """Source ids of examples first to stop of the written order."""
        found: list[str] = []
        for index, (start, end) in enumerate(pairwise(self._unit_starts.tolist())):
            if start < stop and first < end:
                ids = self.read_unit(index, ["source_id"]).column("source_id")
                found += ids.slice(max(first - start, 0), min(stop, end) - max(first, start)).to_pylist()
        return found

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The table, one unit at a time."""
        for index in range(len(self._units)):
            yield self.read_unit(index, columns)

    def _blocks(self, column: str) -> Iterator[pa.Table]:
        """A column, a unit or some small ones at a time: a row group takes long to begin with."""
        blocks = self._unit_starts[:-1] // _BLOCK_EXAMPLES
        for _, units in groupby(range(len(self._units)), key=lambda unit: (self._units[unit][0], blocks[unit])):
            places = [self._units[unit] for unit in units]
            number = places[0][0]
            with _readable(self._places[number]), self._reading:
                table = self._files[number].read_row_groups([row_group for _, row_group in places], columns=[column])
            yield table

    def _read_lengths(self, stream: str) -> Ragged:
        values, counts = [], []
        for table in self._blocks(f"{stream}_length"):
            column = table.column(0).combine_chunks()
            column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
            unit = Ragged(
                column.flatten().to_numpy(zero_copy_only=False).astype(np.int64),
                np.diff(column.offsets.to_numpy()),
            ).narrow()  # a block at a time: the wide numbers of a whole split would be several bytes an example
            values.append(unit.values)
            counts.append(unit.counts)
        return Ragged(np.concatenate(values), np.concatenate(counts)).narrow()

    def _refuse_misfits(self) -> None:
        """A row group's examples must fit its chunk, or offsets would lead into another's."""
        for stream, lengths in self.lengths.items():
            rows = cumulative(lengths.totals())[self.first_examples]
            if (np.diff(rows) > self._chunk_rows[stream]).any():
                raise StoreCorrupt(f"{self._places[0]}: the lengths of {stream} do not fit the row groups of the plan")


@contextmanager
def _readable(place: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, EOFError, RecursionError) as error:
        raise StoreCorrupt(f"{place}: the example table cannot be read: {error}") from None


def _opened(table: TableFile, streams: Iterable[str]) -> pq.ParquetFile:
    with _readable(table.place):
        file = pq.ParquetFile(table.file)
        found = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
        columns = file.schema_arrow
    if found != list(table.unit_examples) or columns != examples_schema(streams):
        raise StoreCorrupt(f"{table.place}: the example table does not have the columns and row groups of the plan")
    return file
