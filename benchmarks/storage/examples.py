"""Example tables for stores whose values come from no text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from sherl_cache.storage import placement_columns, write_examples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from sherl_cache.storage import PackedSplit


def table_of(packed: PackedSplit, size: int = 4096) -> Callable[[BinaryIO], None]:
    """Writes the example table of a packed split, `size` examples at a time; source ids are `split/number`."""
    return lambda file: write_examples(file, _batches(packed, size), packed.unit_examples, packed.streams)


def _batches(packed: PackedSplit, size: int) -> Iterator[pa.RecordBatch]:
    for first in range(0, len(packed.order), size):
        numbers = packed.order[first : first + size]
        count = len(numbers)
        columns = {
            "source_id": [f"{packed.split}/{number}" for number in numbers],
            "group_id": pa.nulls(count, pa.string()),
            "view": pa.array(np.zeros(count, np.int16)),
            "task": ["none"] * count,
            "content_hash": [f"{number:08x}" for number in numbers],
            "label": pa.array((numbers % 3).astype(np.float64)),
            "gold": pa.array(np.zeros(count, np.int32)),
            "input_ids": [[number, 1] for number in numbers.tolist()],
            "token_type_ids": pa.nulls(count, pa.list_(pa.int8())),
            "target_ids": pa.nulls(count, pa.list_(pa.list_(pa.int32()))),
        }
        yield pa.RecordBatch.from_pydict(columns | placement_columns(packed, first, count))
