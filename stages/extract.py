"""Stage one: one work unit -> its receipt, or every missing unit of a store with writing beside the forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from ..storage import claim_units
from .inputs import Batches, TokenBatches
from .overlap import UnitQueue, put_taps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa
    from numpy.typing import NDArray

    from ..storage import Receipt, StoreWriter, Unit, UnitBuffer
    from .front import Front
    from .methods.contract import Packed
    from .streaming_front import StreamingFront
    from .tokens import TokenBatch

    Early = Front | StreamingFront


TOKENS: Final = TokenBatches()
"""What makes batches where the example table holds token ids."""


def extract_missing(
    front: Early,
    writer: StoreWriter,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda examples: None,
    waiting: Callable[[int], None] = lambda units: None,
    batches: Batches = TOKENS,
    begin: Callable[[Unit], bool] = lambda unit: True,
) -> None:
    """Extract every missing unit of a store, together with whatever other writers are at work on it.

    The values are those of `extract_unit`. `advance` is told the examples of each forward, and of each unit that
    another writer committed; `waiting`, while other writers hold all that is left, how many units that is; `batches`
    makes what the front reads; `begin` is asked before each unit, and where it says no, the rest is left. Raises what
    `extract_unit` does, naming the unit; then that unit is not committed, and those before it are.
    """

    def idle(units: int) -> None:
        behind.check()
        waiting(units)

    with (
        claim_units(writer, skipped=lambda unit: advance(unit.examples), waiting=idle) as units,
        UnitQueue(writer) as behind,
    ):
        for unit in units:
            if not begin(unit):
                break
            queue_unit(front, writer, unit, behind, batch_tokens, advance, batches)


def queue_unit(
    front: Early,
    writer: StoreWriter,
    unit: Unit,
    behind: UnitQueue,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda examples: None,
    batches: Batches = TOKENS,
) -> None:
    """Run the early layers over a unit and leave encoding and commit to the queue. Arguments as `extract_unit`."""
    asked = _lacking(front, writer, unit)
    behind.begin(unit, asked.taps)
    rows = writer.table(unit.split).read_unit(unit.index)
    for count, taps, places in forwards(asked, batches, unit.split, rows, batch_tokens):
        if taps:
            behind.put(taps, places)
        advance(count)
    behind.commit()


def extract_unit(
    front: Early,
    writer: StoreWriter,
    unit: Unit,
    rows: pa.Table,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda examples: None,
    batches: Batches = TOKENS,
) -> Receipt:
    """Run the early layers over the examples of a unit and commit what they say. A plain function: it runs the same
    alone, in a test or on a cluster.

    `rows` is the unit's part of the example table; `advance` is told the examples of each forward. Examples are
    batched by length for the forward, at most `batch_tokens` padded tokens each (always at least one example), and
    scattered to the rows that the plan gave them. Raises NonFinite where the encoding cannot hold a value; OutOfSpace
    and others as commit.py does.
    """
    buffer = unit_buffer(_lacking(front, writer, unit), writer, unit, rows, batch_tokens, advance, batches)
    return writer.write(unit, buffer)


def unit_buffer(
    front: Early,
    writer: StoreWriter,
    unit: Unit,
    rows: pa.Table,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda examples: None,
    batches: Batches = TOKENS,
) -> UnitBuffer:
    """The values of a unit in every tap of the front, committed or not; nothing is written. Arguments as `extract_unit`."""
    buffer = writer.buffer(unit, front.taps)
    for count, taps, places in forwards(front, batches, unit.split, rows, batch_tokens):
        put_taps(buffer, taps, places)
        advance(count)
    return buffer


def _lacking(front: Early, writer: StoreWriter, unit: Unit) -> Early:
    """The front of the taps that the unit lacks, which are not all where a store has grown."""
    lacking = writer.lacking(unit)
    return front if not lacking or lacking == dict(front.taps) else front.only(lacking)


def forwards(
    front: Early, batches: Batches, split: str, rows: pa.Table, batch_tokens: int
) -> Iterator[tuple[int, dict[str, Packed], dict[str, NDArray[np.int64]]]]:
    """Taps of each forward over the examples of a unit, all or some at a time: how many examples have all of theirs now,
    the taps, and the physical row of each token.
    """
    places = {name: _segments(rows, name) for name in front.taps}
    examples: list[NDArray[np.int64]] = []

    def given() -> Iterator[TokenBatch]:
        for chosen, batch in batches.forwards(split, rows, batch_tokens):
            examples.append(chosen)
            yield batch

    for number, taps, last in front.run(given()):
        chosen = examples[number]
        where = {name: np.concatenate([places[name][example] for example in chosen.tolist()]) for name in taps}
        yield len(chosen) if last else 0, taps, where


def _segments(rows: pa.Table, stream: str) -> list[NDArray[np.int64]]:
    """Physical rows of every example of a unit in one stream: the rows of its segments one after another."""
    offsets, lengths = rows[f"{stream}_offset"].to_pylist(), rows[f"{stream}_length"].to_pylist()
    return [
        np.concatenate(
            [np.arange(start, start + count) for start, count in zip(*pair, strict=True)] or [np.empty(0, np.int64)]
        )
        for pair in zip(offsets, lengths, strict=True)
    ]
