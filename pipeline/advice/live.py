"""Stage two without a store: the early layers run on the token ids of each batch, which then trains as a cached one does."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ...stages.data import StoreBatches
from ...stages.front import Front
from ...storage import Batch, PackedRows, Ragged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from ...stages.data import StoreStep
    from ...stages.inputs import Batches
    from ...stages.load import LoadedModel
    from ...stages.methods.contract import Packed
    from ...stages.steps import TrainBatch
    from ...stages.tokens import TokenBatch


class LiveBatches(StoreBatches):
    """The batches of a `StoreBatches`, in its order, of states that are computed when they are asked for, without gradients.

    Of the store it reads the example table and no state.
    """

    def __init__(self, cached: StoreBatches, loaded: LoadedModel, inputs: Batches) -> None:
        """inputs: what makes batches of rows of the example table, which stays in memory."""
        stream = cached.stream
        super().__init__(
            stream,
            cached.targets,
            cached.depths,
            cached.exit_stream,
            cached.device,
            cached.segments,
            cached.micro_examples,
            tasks=cached.tasks,
        )
        table = stream.store.examples(stream.split)
        self._rows = pa.concat_tables(table.batches())
        self._lengths = {name: table.lengths[name] for name in stream.taps}
        self._gold = table.gold if cached.segments == "gold" else None
        """Of each example, where the right one of its answers is all that is read."""
        self._answers = {name for name in stream.taps if loaded.table.stream(name).answers}
        self._front = Front(loaded, stream.taps)
        self._inputs = inputs

    def steps(self, epoch: int, start_batch: int = 0) -> Iterator[StoreStep]:
        for batch in self._unread(epoch, start_batch):
            yield self.step(batch)

    def convert(self, batch: Batch, decoded: Mapping[str, Packed] | None = None) -> TrainBatch:
        return super().convert(batch, decoded or self._front(self._tokens(batch.examples)))

    def _converted(self, number: int, start_batch: int) -> Iterator[tuple[NDArray[np.int64], TrainBatch]]:
        for batch in self._unread(number, start_batch):
            yield batch.examples, self.convert(batch)

    def _unread(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        """Every batch as the stream would give it, its taps without numbers."""
        for examples in islice(self.stream.examples(epoch), start_batch, None):
            streams = {}
            for name, taps in self.stream.taps.items():
                found = self._chosen(name, examples)
                empty = np.empty((len(taps), int(found.values.sum()), 0), np.float32)
                streams[name] = PackedRows(empty, found.values.astype(np.int32), found.counts.astype(np.int32))
            yield Batch(examples, streams)

    def _chosen(self, stream: str, examples: NDArray[np.int64]) -> Ragged:
        """Lengths of the segments that are read of some examples."""
        found = self._lengths[stream].take(examples)
        if self._gold is None or stream not in self._answers:
            return found
        gold = self._gold[examples].astype(np.int64)
        right = found.starts()[:-1][gold >= 0] + gold[gold >= 0]
        return Ragged(found.values[right], (gold >= 0).astype(found.counts.dtype))

    def _tokens(self, examples: NDArray[np.int64]) -> TokenBatch:
        """What the model reads of some examples."""
        tokens = self._inputs.batch(self.stream.split, self._rows, examples)
        if self._gold is None or tokens.targets is None:
            return tokens
        gold = self._gold[examples].tolist()
        chosen = [[each[right]] if right >= 0 else [] for each, right in zip(tokens.targets, gold, strict=True)]
        return replace(tokens, targets=chosen)
