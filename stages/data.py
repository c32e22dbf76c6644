"""From the store's batches to the model's: numpy rows become packed tensors, the example table becomes targets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ..storage import Batch, PackedRows
from ..storage.errors import DataError
from ..storage.rows import some_rows
from ..storage.rows import some_taps as some_stored_taps
from .decode import TapDecoder
from .methods.contract import UNLABELLED, Packed, Targets, some_taps
from .steps import TrainBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from ..storage import ExampleTable, Stream

Segments = Literal["gold", "all"]


def packed(rows: PackedRows, depths: tuple[int, ...], decoder: TapDecoder) -> Packed:
    """Stored rows [K, N, stored width], or K of their own widths, as a Packed of what the decoder gives, on its device."""
    lengths = torch.from_numpy(rows.lengths.astype(np.int64)).to(decoder.device)
    return Packed(decoder(rows.taps), lengths, depths)


class TargetTable:
    """What every example of a split should have answered, as the head's output asks for it."""

    def __init__(self, table: ExampleTable, task: Mapping[str, Any], output: str, streams: Sequence[str] = ()) -> None:
        """`task` is the store's task block; `output` is Head.output: classes, score, tokens or pair; streams: of a pair,
        those whose rows its head reads.
        """
        self.output = output
        self.gold: NDArray[np.int32] = table.gold
        self.score: NDArray[np.float64] = table.label
        self._closed = None
        self._open = None
        self.group: NDArray[np.int32] | None = None
        """Of a pair: a number an example, the same for examples that belong together."""
        if output == "pair":
            ids = table.column("group_id").to_pylist()
            self.group = np.unique(ids, return_inverse=True)[1].astype(np.int32)
            self._counts = [table.lengths[name].counts for name in streams]
        if output == "tokens":
            known, stored = task["target_ids"], table.column("target_ids")
            if known is not None and pc.all(pc.equal(pc.list_value_length(stored), len(known))).as_py():
                self._closed = [np.asarray(ids, np.int64) for ids in known]
            else:  # of an open set, or with the right answer alone
                self._open = stored

    def candidates(self, example: int) -> list[NDArray[np.int64]]:
        """Token ids of every candidate answer of an example."""
        if self._closed is not None:
            return self._closed
        assert self._open is not None
        return [np.asarray(ids, np.int64) for ids in self._open[example].as_py() or []]

    def of(
        self,
        examples: NDArray[np.int64],
        segments: Segments,
        device: torch.device,
        lengths: NDArray[Any] | None = None,
    ) -> Targets:
        """Targets of a batch; tokens are those of the gold candidate, or of all of them, in the order of the
        decoder's rows.

        lengths: rows of each segment of the stream that answers: its last rows predict the answer's tokens, and the rows
        before them have no target. None: there are none before them.
        """
        if self.output == "classes":
            gold = self.gold[examples].astype(np.int64)
            return Targets(gold=torch.from_numpy(np.where(gold < 0, UNLABELLED, gold)).to(device))
        if self.output == "score":
            return Targets(score=torch.from_numpy(self.score[examples].astype(np.float32)).to(device))
        if self.group is not None:
            own = self.group[examples].astype(np.int64)
            first, second = (torch.from_numpy(np.repeat(own, counts[examples])).to(device) for counts in self._counts)
            return Targets(groups=(first, second))
        tokens: list[NDArray[np.int64]] = []
        for example in examples.tolist():
            chosen = self.candidates(example)
            right = int(self.gold[example])
            tokens += chosen if segments == "all" else [chosen[right]] if right >= 0 else []
        if lengths is not None:
            tokens = [_at_the_end(answer, int(length)) for answer, length in zip(tokens, lengths, strict=True)]
        joined = np.concatenate(tokens) if tokens else np.empty(0, np.int64)
        return Targets(tokens=torch.from_numpy(joined).to(device))


def _at_the_end(answer: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Targets of a segment of `length` rows that ends with an answer."""
    return np.concatenate([np.full(length - len(answer), UNLABELLED, np.int64), answer])


def task_numbers(table: ExampleTable, names: Sequence[str]) -> NDArray[np.int32]:
    """The number of each example's task, int32 [examples]. Raises DataError for one that has no number."""
    numbers = pc.index_in(table.column("task"), pa.array(names, pa.string()))
    if numbers.null_count:
        stranger = pc.filter(table.column("task"), pc.is_null(numbers))[0].as_py()
        raise DataError(f"examples of the task {stranger!r}: this model knows {', '.join(names)}")
    return np.asarray(numbers.to_numpy(), np.int32)


def allocator(device: torch.device) -> Callable[..., NDArray[Any]]:
    """What a stream's buffers are made by: pinned memory where batches go to a GPU."""
    if device.type != "cuda":
        return np.empty

    def pinned(shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        assert dtype is np.uint8
        found: NDArray[Any] = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
        return found

    return pinned


class StoreBatches:
    """What one model takes of the batches of a stream, as steps.Batches. A batch is valid until the next one is asked for,
    unless it is told to keep them.

    The stream may read more taps and streams than the model does: several models then learn from one read.
    """

    def __init__(
        self,
        stream: Stream,
        targets: TargetTable,
        depths: Mapping[str, tuple[int, ...]],
        exit_stream: str,
        device: torch.device,
        segments: Segments = "gold",
        micro_examples: int | None = None,
        keep: bool = False,
        tasks: NDArray[np.int32] | None = None,
    ) -> None:
        """depths: taps of each stream, as the model reads them; exit_stream: the stream whose rows the head reads;
        micro_examples: examples of a micro-batch in `steps`; None: the whole batch; keep: whole batches are in memory of
        their own; tasks: the number of each example's task, for a model that reads it.
        """
        self.stream, self.targets, self.depths, self.exit_stream = stream, targets, depths, exit_stream
        self.device, self.segments, self.micro_examples, self.keep = device, segments, micro_examples, keep
        self.tasks = tasks
        self._places = {name: places(stream.taps[name], taps) for name, taps in depths.items()}
        self.decoders = decoders_of(stream, depths, device, widen=False)
        self._copied: torch.cuda.Event | None = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def waited_seconds(self) -> float:
        return self.stream.waited_seconds

    def batches_in(self, epoch: int) -> int:
        return self.stream.batches_in(epoch)

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[TrainBatch]:
        """Whole batches."""
        for _, batch in self._converted(number, start_batch):
            yield batch

    def steps(self, epoch: int, start_batch: int = 0) -> Iterator[StoreStep]:
        """Every batch as the micro-batches of one step."""
        for batch in self.stream.epoch(epoch, start_batch):
            yield self.step(batch)
            self._await_copies()

    def indexed(self) -> Iterator[tuple[NDArray[np.int64], TrainBatch]]:
        """Every batch with the examples in it, by their places in written order."""
        return self._converted(0, 0)

    def step(self, batch: Batch, decoded: Mapping[str, Packed] | None = None) -> StoreStep:
        """A batch of the stream as one step; `decoded`: all taps of the stream, where they are decoded already."""
        size = self.micro_examples
        if size is None or size >= len(batch.examples):
            return StoreStep([batch], self.depths, lambda part: self.convert(part, decoded), self.targets_of)
        parts = [some_examples(batch, first, first + size) for first in range(0, len(batch.examples), size)]
        return StoreStep(parts, self.depths, self.convert, self.targets_of)

    def targets_of(self, batch: Batch) -> Targets:
        """What a batch should have answered."""
        return self.targets.of(batch.examples, self.segments, self.device, batch.streams[self.exit_stream].lengths)

    def convert(self, batch: Batch, decoded: Mapping[str, Packed] | None = None) -> TrainBatch:
        """A batch of the stream as the model takes it; see `step` for `decoded`."""
        if decoded is None:
            inputs = {
                name: packed(chosen_taps(batch.streams[name], self._places[name]), taps, self.decoders[name])
                for name, taps in self.depths.items()
            }
        else:
            inputs = {
                name: Packed(some_taps(decoded[name].taps, self._places[name]), decoded[name].lengths, taps)
                for name, taps in self.depths.items()
            }
        if self.tasks is not None:
            inputs = {name: replace(packed_, tasks=self._tasks_of(batch, name)) for name, packed_ in inputs.items()}
        targets, select = self.targets_of(batch), None
        if targets.tokens is not None:
            select = targets.tokens != UNLABELLED
            targets = replace(targets, tokens=targets.tokens[select])
        counts = torch.from_numpy(batch.streams[self.exit_stream].counts.astype(np.int64)).to(self.device)
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self.device))
        return TrainBatch(inputs, targets, select, counts, len(batch.examples), tokens_of(batch, self.depths))

    def _tasks_of(self, batch: Batch, stream: str) -> torch.Tensor:
        """The number of each segment's task, int64 [S]."""
        assert self.tasks is not None
        numbers = np.repeat(self.tasks[batch.examples].astype(np.int64), batch.streams[stream].counts)
        return torch.from_numpy(numbers).to(self.device)

    def _converted(self, number: int, start_batch: int) -> Iterator[tuple[NDArray[np.int64], TrainBatch]]:
        for batch in self.stream.epoch(number, start_batch):
            yield batch.examples, self.convert(batch.copy() if self.keep else batch)
            self._await_copies()

    def _await_copies(self) -> None:
        """Copies out of pinned memory run beside us; the next batch may overwrite it."""
        if self._copied is not None:
            self._copied.synchronize()


class StoreStep:
    """One global batch of a store as the micro-batches of a step, each decoded when it is asked for."""

    def __init__(
        self,
        parts: Sequence[Batch],
        streams: Iterable[str],
        convert: Callable[[Batch], TrainBatch],
        targets_of: Callable[[Batch], Targets],
    ) -> None:
        self._parts, self._convert, self._targets_of = parts, convert, targets_of
        self.examples = sum(len(part.examples) for part in parts)
        self.tokens = sum(tokens_of(part, streams) for part in parts)

    def targets(self) -> list[Targets]:
        return [self._targets_of(part) for part in self._parts]

    def batches(self) -> Iterator[TrainBatch]:
        return map(self._convert, self._parts)


def decoders_of(
    stream: Stream, depths: Mapping[str, tuple[int, ...]], device: torch.device, *, widen: bool = True
) -> dict[str, TapDecoder]:
    """A decoder for some taps of each stream; see TapDecoder for `widen`."""
    return {
        name: TapDecoder.of(stream.store, stream.split, name, taps, device, widen=widen)
        for name, taps in depths.items()
    }


def places(held: Sequence[int], wanted: Sequence[int]) -> slice | list[int]:
    """Where the wanted taps stand among those that are held; a slice, which copies nothing, where they follow each other."""
    found = [tuple(held).index(tap) for tap in wanted]
    if found == list(range(found[0], found[0] + len(found))):
        return slice(found[0], found[0] + len(found))
    return found


def chosen_taps(rows: PackedRows, chosen: slice | list[int]) -> PackedRows:
    """The same rows with some of their taps."""
    return replace(rows, taps=some_stored_taps(rows.taps, chosen))


def some_examples(batch: Batch, first: int, stop: int) -> Batch:
    """Examples `first` to `stop` of a batch, as views."""
    streams = {}
    for name, rows in batch.streams.items():
        segments = np.append(0, np.cumsum(rows.counts))[[first, min(stop, len(rows.counts))]]
        begin, end = np.append(0, np.cumsum(rows.lengths))[segments]
        streams[name] = PackedRows(
            some_rows(rows.taps, begin, end), rows.lengths[segments[0] : segments[1]], rows.counts[first:stop]
        )
    return Batch(batch.examples[first:stop], streams)


def tokens_of(batch: Batch, streams: Iterable[str]) -> int:
    """Rows of some streams of a batch."""
    return sum(int(batch.streams[name].lengths.sum()) for name in streams)
