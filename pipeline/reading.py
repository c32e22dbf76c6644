"""A store as streams: what a recipe, or several at once, read of it, and what reading took."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..stages.data import Segments, StoreBatches, TargetTable, task_numbers
from ..storage import Store, Stream
from ..storage.errors import RecipeError
from .again import extract_command, free_name
from .progress import size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

    from ..stages.model import StageTwo
    from ..storage import ReadBuffers
    from .recipe import Recipe
    from .recipe_sections import Data

Taps = dict[str, tuple[int, ...]]


def open_stream(data: Data, store: Store, models: Sequence[StageTwo], split: str, buffers: ReadBuffers) -> Stream:
    """Batches of a split with all that some models read; of train in training order, else in written order."""
    training = split == "train"
    reads = union(model.reads for model in models)
    table = models[0].table
    answers = {name for name in reads if table.stream(name).answers}
    return Stream(
        store,
        split,
        reads,
        batch_examples=data.batch_examples,
        batch_tokens=data.batch_tokens,
        window=data.window,
        buffers=buffers,
        seed=data.seed,
        shuffle=training,
        segments={name: segments_of(split) if name in answers else "all" for name in reads},
        threads=data.threads,
    )


def batches_of(stream: Stream, model: StageTwo, device: torch.device, micro_examples: int | None) -> StoreBatches:
    """What a model takes of a stream."""
    store, split = stream.store, stream.split
    targets = TargetTable(store.examples(split), store.producer["task"], model.head.output, model.exit_streams)
    micro = micro_examples if split == "train" else None
    tasks = task_numbers(store.examples(split), model.tasks) if model.reads_tasks else None
    return StoreBatches(stream, targets, model.reads, model.exit_stream, device, segments_of(split), micro, tasks=tasks)


def store_batches(
    recipe: Recipe, store: Store, model: StageTwo, split: str, device: torch.device, buffers: ReadBuffers
) -> StoreBatches:
    """Batches of a split as the recipe cuts them; validation in written order."""
    stream = open_stream(recipe.data, store, [model], split, buffers)
    return batches_of(stream, model, device, recipe.train.micro_batch_examples)


def segments_of(split: str) -> Segments:
    """Which candidate answers are read: training learns from the right one, validation scores all of them."""
    return "gold" if split == "train" else "all"


def union(reads: Iterable[Mapping[str, tuple[int, ...]]]) -> Taps:
    """Every tap that one of them reads, by stream, ascending."""
    found: dict[str, set[int]] = {}
    for each in reads:
        for name, taps in each.items():
            found.setdefault(name, set()).update(taps)
    return {name: tuple(sorted(taps)) for name, taps in found.items()}


def require_taps(store: Store, model: StageTwo) -> None:
    """Refuse a recipe that reads taps which the store lacks, with the command that adds them."""
    streams = next(iter(store.plan.splits.values())).streams
    lacking = {
        name: sorted(set(taps) - set(streams[name].taps)) for name, taps in model.reads.items() if name in streams
    }
    if any(lacking.values()):
        both = {name: sorted({*stream.taps, *model.reads.get(name, ())}) for name, stream in streams.items()}
        grammar = ";".join(f"{name}:{','.join(map(str, taps))}" for name, taps in both.items())
        names = ", ".join(f"{name} h{tap:02d}" for name, taps in lacking.items() for tap in taps)
        folder = store.root if isinstance(store.root, Path) else Path("cache")
        said = f"the recipe reads {names}, which the store does not hold"
        if store.encoding.calibrated:
            command = extract_command(store.producer, free_name(folder), taps=grammar)
            raise RecipeError(
                f"{said} and cannot take in: its {store.encoding.name} is calibrated for its own taps only; this makes "
                f"another store, of all of them: {command}"
            )
        command = extract_command(store.producer, folder, taps=grammar)
        where = "" if folder is store.root else " to its local original, which is then copied again"
        raise RecipeError(f"{said}; this adds it{where}, and runs nothing else again: {command}")


def reading_line(streams: Sequence[Stream]) -> str:
    """What reading took, for people."""
    reports = {stream.split: stream.report() for stream in streams}
    kept = [split for split, report in reports.items() if report.mode == "memory"]
    waited = sum(report.waited_seconds for report in reports.values())
    return (
        f"read {size(sum(report.read_bytes for report in reports.values()))} from the store, waited {waited:.1f} s for it"
        + (f"; {' and '.join(kept)} stayed in memory after the first pass" if kept else "")
    )
