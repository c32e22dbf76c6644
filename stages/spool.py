"""Token ids of a split between tokenising and packing: a memory-mapped Arrow file, so that memory does not grow with
the data.

Rows go in in source order as they are tokenised and come out in written order, a unit at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..storage.system import translated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

BATCH_ROWS = 1024


class Spool:
    """The rows of one split; `lengths` [rows] and `candidates` are all that stays in memory."""

    def __init__(self, path: Path, batches: Iterator[pa.RecordBatch]) -> None:
        """Write every batch to `path`, then map it. `path` must not exist; whoever made its folder removes it.

        Raises OutOfSpace, AccessDenied.
        """
        first = next(batches, None)
        self.rows = 0
        self._table: pa.Table | None = None
        if first is None:
            return
        try:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
                writer.write_batch(first)
                for batch in batches:
                    writer.write_batch(batch)
        except OSError as error:
            found = translated(error, path, first.nbytes)
            raise type(found)(
                f"{found}; TMPDIR names another place for what is needed while a store is planned"
            ) from None
        table: pa.Table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._table = table
        self.rows = table.num_rows

    def input_lengths(self) -> NDArray[np.int32]:
        """Tokens of each row's input, int32 [rows]."""
        return _lengths(self._require()["input_ids"])

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column, in source order."""
        return self._require()[name]

    def target_lengths(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Tokens of every candidate answer, int32 [candidates], and candidates of each row, int32 [rows]."""
        column = self._require()["target_ids"]
        counts = _lengths(column)
        values = [_lengths(chunk.flatten()) for chunk in column.chunks]
        return np.concatenate(values) if values else np.empty(0, np.int32), counts

    def take(self, order: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
        """Rows in the given order, at most 1,024 a batch."""
        table = self._require()
        for start in range(0, len(order), BATCH_ROWS):
            chosen = table.take(pa.array(order[start : start + BATCH_ROWS]))
            yield from chosen.combine_chunks().to_batches()

    def _require(self) -> pa.Table:
        if self._table is None:
            raise ValueError("the spool holds no rows")
        return self._table


def _lengths(column: pa.ChunkedArray | pa.Array) -> NDArray[np.int32]:
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    return np.asarray(
        lengths.to_numpy(zero_copy_only=False) if isinstance(lengths, pa.Array) else lengths.to_numpy(), np.int32
    )
