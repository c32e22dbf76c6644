"""A store as a torch data set: the batches that the training loop sees, in the same order, for loops of others.

dataset = StoreDataset.for_model("cache", model, batch_examples=32)
for batch in torch.utils.data.DataLoader(dataset, batch_size=None):
    output = model(batch["inputs"], batch["select"], batch["segments"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..storage import Store, Stream
from ..storage.errors import DataError, InvalidInput
from .data import Segments, StoreBatches, TargetTable, task_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .model import StageTwo


class StoreDataset(IterableDataset[dict[str, Any]]):
    """Batches of one split of a store; each item is a whole batch, in memory of its own.

    An item holds `segments` (int64 [B]), `inputs` (stream -> Packed), `targets` (Targets), `select` (bool [N] or None),
    and the numbers `examples` and `tokens`. It goes into a DataLoader with batch_size=None. The sequence of global
    batches is a function of (seed, epoch, window, batch rule, the store's order key); a rank gets its contiguous slice
    of each.

    Reading ahead is done by threads of its own, so a DataLoader needs no worker. One worker is allowed and gives the
    same; more are refused, since each would read the whole store.
    """

    def __init__(
        self,
        place: str | Path,
        reads: Mapping[str, tuple[int, ...]],
        *,
        output: str,
        exit_stream: str,
        pair: tuple[str, ...] = (),
        answers: tuple[str, ...] = (),
        tasks: tuple[str, ...] = (),
        split: str = "train",
        batch_examples: int | None = None,
        batch_tokens: int | None = None,
        window: int = 16,
        seed: int = 0,
        shuffle: bool | None = None,
        rank: int | None = None,
        ranks: int | None = None,
        read_budget: int = 2**30,
        threads: int = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        """place: the store, a folder or s3://...; reads: taps of each stream; output: what the head gives (`classes`,
        `score`, `tokens`, `pair`); exit_stream: the stream whose rows the head reads; pair: both streams of a head that
        reads two; answers: streams that hold candidate
        answers, of which training reads the right one and every other split all; tasks: names of the tasks of examples, where a
        model reads their numbers.

        batch_examples or batch_tokens: examples of a global batch, or its padded tokens. shuffle: None is as the
        training loop does: the training split alone. rank, ranks: None is as torch.distributed has it where it is
        initialised. read_budget: bytes that reading may hold.
        """
        super().__init__()
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.place, self.split, self.device = place, split, torch.device(device)
        self.reads = {name: tuple(taps) for name, taps in reads.items()}
        self.output, self.exit_stream, self.pair, self.answers = output, exit_stream, tuple(pair), tuple(answers)
        self.tasks = tuple(tasks)
        self.epoch = 0
        self._settings: dict[str, Any] = {
            "batch_examples": batch_examples,
            "batch_tokens": batch_tokens,
            "window": window,
            "seed": seed,
            "shuffle": split == "train" if shuffle is None else shuffle,
            "rank": (torch.distributed.get_rank() if distributed else 0) if rank is None else rank,
            "ranks": (torch.distributed.get_world_size() if distributed else 1) if ranks is None else ranks,
            "budget_bytes": read_budget,
            "threads": threads,
        }
        self._batches: StoreBatches | None = None

    @classmethod
    def for_model(cls, place: str | Path, model: StageTwo, **options: Any) -> Self:
        """What a stage-two model reads; options are those of the class."""
        answers = tuple(name for name in model.reads if model.table.stream(name).answers)
        output = model.head.output
        return cls(
            place,
            model.reads,
            output=output,
            exit_stream=model.exit_stream,
            pair=model.exit_streams if output == "pair" else (),
            answers=answers,
            tasks=model.tasks if model.reads_tasks else (),
            **options,
        )

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next pass reads; a DataLoader of `accelerate` passes on what it is told."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of this epoch; where they are cut by tokens the number differs a little between epochs."""
        return self.batches.batches_in(self.epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise InvalidInput(
                f"num_workers={worker.num_workers}: every worker would read the whole store; set it to 0, and `threads` of the "
                "data set to read ahead"
            )
        for batch in self.batches.epoch(self.epoch):
            yield {
                "segments": batch.segments,  # first: `accelerate` takes the size of a batch from what stands first
                "inputs": batch.inputs,
                "targets": batch.targets,
                "select": batch.select,
                "examples": batch.examples,
                "tokens": batch.tokens,
            }

    def __getstate__(self) -> dict[str, Any]:
        """Without what is open: another process opens the store itself."""
        return {**self.__dict__, "_batches": None}

    @property
    def batches(self) -> StoreBatches:
        """The store's batches as the training loop takes them. Raises what `Store.open` and `Stream` do."""
        if self._batches is None:
            store = Store.open(self.place)
            if self.split not in store.plan.splits:
                raise DataError(f"{self.place} has no split {self.split!r}; it has {', '.join(store.plan.splits)}")
            if store.producer["model"].get("answers") == "text" and self.output != "tokens":
                raise DataError(
                    f"{self.place}: rows of this store hold texts with their answers behind them, so that a head of "
                    f"{self.output} would read the answer; extract without --answers text"
                )
            segments: Segments = "gold" if self.split == "train" else "all"
            chosen = {name: segments if name in self.answers else "all" for name in self.reads}
            stream = Stream(store, self.split, self.reads, segments=chosen, **self._settings)
            targets = TargetTable(store.examples(self.split), store.producer["task"], self.output, self.pair)
            tasks = task_numbers(store.examples(self.split), self.tasks) if self.tasks else None
            self._batches = StoreBatches(
                stream, targets, self.reads, self.exit_stream, self.device, segments, keep=True, tasks=tasks
            )
        return self._batches
