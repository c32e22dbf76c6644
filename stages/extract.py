"""Stage one: one work unit -> its receipt. A plain function: it runs the same alone, in a test or on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .tokens import TokenBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa
    from numpy.typing import NDArray

    from ..storage import Receipt, StoreWriter, Unit
    from .front import Front


def extract_unit(
    front: Front,
    writer: StoreWriter,
    unit: Unit,
    rows: pa.Table,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda examples: None,
) -> Receipt:
    """Run the early layers over the examples of a unit and commit what they say.

    `rows` is the unit's part of the example table; `advance` is told the examples of each forward. Examples are
    batched by length for the forward, at most `batch_tokens` padded tokens each (always at least one example), and
    scattered to the rows that the plan gave them. Raises NonFinite where the encoding cannot hold a value; OutOfSpace
    and others as commit.py does.
    """
    buffer = writer.buffer(unit)
    lengths = input_lengths(rows)
    places = {name: _segments(rows, name) for name in front.taps}
    for chosen in forward_batches(lengths, batch_tokens):
        for name, packed in front(token_batch(rows, chosen)).items():
            where = np.concatenate([places[name][example] for example in chosen.tolist()])
            for tap, values in zip(packed.depths, packed.taps, strict=True):
                buffer.put(name, tap, where, as_numpy(values))
        advance(len(chosen))
    return writer.write(unit, buffer)


def as_numpy(values: torch.Tensor) -> NDArray[Any]:
    """States as float32 (float64 where they are), on the host."""
    wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
    numbers: NDArray[Any] = wide.cpu().numpy()
    return numbers


def forward_batches(lengths: NDArray[np.int64], batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Positions of the examples of each forward batch: sorted by length, then cut where padding would exceed
    `batch_tokens`.

    A function of the lengths alone: the composition of batches moves the last bits of a forward, so it belongs to the
    plan.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        # sorted ascending: the next example is the longest of the batch it would join
        if end == len(order) or (end - start + 1) * int(lengths[order[end]]) > batch_tokens:
            yield order[start:end]
            start = end


def token_batch(rows: pa.Table, chosen: NDArray[np.int64]) -> TokenBatch:
    """The token ids of some rows of an example table."""
    part = rows.take(chosen)
    types = part["token_type_ids"].to_pylist()
    targets = part["target_ids"].to_pylist()
    return TokenBatch(
        input_ids=part["input_ids"].to_pylist(),
        token_type_ids=None if any(item is None for item in types) else types,
        targets=None if all(item is None for item in targets) else [item or [] for item in targets],
    )


def input_lengths(rows: pa.Table) -> NDArray[np.int64]:
    """Tokens of each row's input, [rows]."""
    return np.asarray([len(ids) for ids in rows["input_ids"].to_pylist()], np.int64)


def _segments(rows: pa.Table, stream: str) -> list[NDArray[np.int64]]:
    """Physical rows of every example of a unit in one stream: the rows of its segments one after another."""
    offsets, lengths = rows[f"{stream}_offset"].to_pylist(), rows[f"{stream}_length"].to_pylist()
    return [
        np.concatenate(
            [np.arange(start, start + count) for start, count in zip(*pair, strict=True)] or [np.empty(0, np.int64)]
        )
        for pair in zip(offsets, lengths, strict=True)
    ]
