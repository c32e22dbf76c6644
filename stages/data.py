"""From the store's batches to the model's: numpy rows become packed tensors, the example table becomes targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from .decode import TapDecoder
from .methods.contract import UNLABELLED, Packed, Targets
from .train import TrainBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from ..storage import Batch, ExampleTable, PackedRows, Stream

Segments = Literal["gold", "all"]


def packed(rows: PackedRows, depths: tuple[int, ...], decoder: TapDecoder) -> Packed:
    """Stored rows [K, N, stored width] as a Packed in float32 (float64 where they are stored so) on the decoder's device."""
    lengths = torch.from_numpy(rows.lengths.astype(np.int64)).to(decoder.device)
    return Packed(decoder(rows.taps), lengths, depths)


class TargetTable:
    """What every example of a split should have answered, as the head's output asks for it."""

    def __init__(self, table: ExampleTable, task: Mapping[str, Any], output: str) -> None:
        """`task` is the store's task block; `output` is Head.output: classes, score or tokens."""
        self.output = output
        self.gold: NDArray[np.int32] = table.gold
        self.score: NDArray[np.float64] = table.label
        self._closed = None
        self._open = None
        if output == "tokens":
            if task["target_ids"] is not None:
                self._closed = [np.asarray(ids, np.int64) for ids in task["target_ids"]]
            else:
                self._open = table.column("target_ids")

    def candidates(self, example: int) -> list[NDArray[np.int64]]:
        """Token ids of every candidate answer of an example."""
        if self._closed is not None:
            return self._closed
        assert self._open is not None
        return [np.asarray(ids, np.int64) for ids in self._open[example].as_py() or []]

    def of(self, examples: NDArray[np.int64], segments: Segments, device: torch.device) -> Targets:
        """Targets of a batch; tokens are those of the gold candidate, or of all of them, in the order of the
        decoder's rows.
        """
        if self.output == "classes":
            gold = self.gold[examples].astype(np.int64)
            return Targets(gold=torch.from_numpy(np.where(gold < 0, UNLABELLED, gold)).to(device))
        if self.output == "score":
            return Targets(score=torch.from_numpy(self.score[examples].astype(np.float32)).to(device))
        tokens: list[NDArray[np.int64]] = []
        for example in examples.tolist():
            chosen = self.candidates(example)
            right = int(self.gold[example])
            tokens += chosen if segments == "all" else [chosen[right]] if right >= 0 else []
        joined = np.concatenate(tokens) if tokens else np.empty(0, np.int64)
        return Targets(tokens=torch.from_numpy(joined).to(device))


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
    """A stream of a store as train.Batches. A batch is valid until the next one is asked for, unless it is told to keep
    them.
    """

    def __init__(
        self,
        stream: Stream,
        targets: TargetTable,
        depths: Mapping[str, tuple[int, ...]],
        exit_stream: str,
        device: torch.device,
        segments: Segments = "gold",
        keep: bool = False,
    ) -> None:
        """depths: taps of each stream, as the model reads them; exit_stream: the stream whose rows the head reads; keep:
        every batch is in memory of its own.
        """
        self.stream, self.targets, self.depths, self.exit_stream = stream, targets, depths, exit_stream
        self.device, self.segments, self.keep = device, segments, keep
        self.decoders = {
            name: TapDecoder.of(stream.store, stream.split, name, taps, device) for name, taps in depths.items()
        }

    @property
    def waited_seconds(self) -> float:
        return self.stream.waited_seconds

    def batches_in(self, epoch: int) -> int:
        return self.stream.batches_in(epoch)

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[TrainBatch]:
        for _, batch in self._converted(number, start_batch):
            yield batch

    def indexed(self) -> Iterator[tuple[NDArray[np.int64], TrainBatch]]:
        """Every batch with the examples in it, by their places in written order."""
        return self._converted(0, 0)

    def _converted(self, number: int, start_batch: int) -> Iterator[tuple[NDArray[np.int64], TrainBatch]]:
        copied: torch.cuda.Event | None = torch.cuda.Event() if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        for batch in self.stream.epoch(number, start_batch):
            converted = self._convert(batch.copy() if self.keep else batch)
            if copied is not None:
                copied.record(torch.cuda.current_stream(self.device))
            yield batch.examples, converted
            if copied is not None:  # copies out of pinned memory run beside us; the next batch may overwrite it
                copied.synchronize()

    def _convert(self, batch: Batch) -> TrainBatch:
        inputs = {name: packed(rows, self.depths[name], self.decoders[name]) for name, rows in batch.streams.items()}
        targets = self.targets.of(batch.examples, self.segments, self.device)
        select: Tensor | None = None if targets.tokens is None else targets.tokens != UNLABELLED
        tokens = sum(int(rows.lengths.sum()) for rows in batch.streams.values())
        counts = torch.from_numpy(batch.streams[self.exit_stream].counts.astype(np.int64)).to(self.device)
        return TrainBatch(inputs, targets, select, counts, len(batch.examples), tokens)
