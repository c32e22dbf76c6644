"""The live model of a run, and the raw rows it is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..stages.answer import Answerer
from ..stages.device import choose_device
from ..stages.late_weights import late_weights
from ..stages.live import LiveModel
from ..stages.load import load_pretrained
from ..stages.producer import task_of
from ..stages.sources import Source, open_source
from ..stages.sources.contract import Picture
from ..stages.splits import split_rules
from ..storage.errors import StoreStale, UsageError
from .training import stage_two

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ..stages.tasks import Task
    from .run import Run


def load_live(run: Run, device: str) -> Answerer:
    """The pretrained model by its name, with the trained parts of a run in it.

    Raises StoreStale when that name now means other weights than those the run was trained on.
    """
    producer = run.facts()["producer"]
    known = producer["model"]
    loaded = load_pretrained(known["name"], known["revision"], known["precision"], choose_device(device))
    if loaded.weights_digest != known["weights"]:
        raise StoreStale(
            f"{known['name']} is not the model that {run.root} was trained on: weights {loaded.weights_digest[:12]}.. now, "
            f"{known['weights'][:12]}.. then; give the old checkpoint back, or extract and train again"
        )
    loaded = loaded.only(known["streams"]) if "streams" in known else loaded
    weights = late_weights(loaded, producer["late"])
    model = stage_two(run.recipe(), producer, weights.__getitem__)
    model.load_trainable_state_dict(run.best_weights())
    task = producer["task"]
    return Answerer(LiveModel(loaded, model.eval()), task_of(producer), task["target_ids"], task["max_length"])


def run_source(run: Run, task: Task, data: str | None) -> Source:
    """The rows to score: the run's own, split as they were for it, or other data with the same columns."""
    known = run.facts()["producer"]["data"]
    if data is not None:
        return split_rules(open_source(data, task=known["task"]), task)
    source = open_source(known["name"], task=known["task"], validation=known["validation"], revision=known["revision"])
    return split_rules(source, task, known["splits"], limit=known["limit"])


def rows_of_texts(texts: Sequence[str], task: Task) -> Iterator[tuple[str, ...]]:
    """One row a text, or a file of a picture; a task of several text columns takes them with a tab between. Raises UsageError."""
    for text in texts:
        parts = tuple(text.split("\t")) if len(task.columns) > 1 else (text,)
        if len(parts) != len(task.columns):
            raise UsageError(
                f"{text!r} holds {len(parts)} texts and the task reads {len(task.columns)} ({', '.join(task.columns)}); "
                "put a tab between them"
            )
        yield parts


def rows_of_file(path: Path, task: Task) -> Iterator[tuple[str | Picture, ...]]:
    """The text columns, or the picture, of every row of a file or folder; no label is needed."""
    source = open_source(str(path))
    split = source.splits[0]
    source.require(split, task.columns)
    for batch in source.batches(split, task.columns):
        values = (
            [value if isinstance(value, Picture) else str(value) for value in batch[column]] for column in task.columns
        )
        yield from zip(*values, strict=True)
