"""The live model of what was trained, and the raw rows it is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..stages.answer import Answerer
from ..stages.device import choose_device
from ..stages.late_weights import late_weights
from ..stages.live import LiveModel
from ..stages.load import load_pretrained
from ..stages.maps import MapForm
from ..stages.producer import task_of
from ..stages.sources import Source, open_source
from ..stages.sources.contract import Picture
from ..stages.splits import split_rules
from ..storage.errors import StoreStale, UsageError
from .training import stage_two

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ..stages.load import LoadedModel
    from ..stages.tasks import Task
    from .trained import Trained


def load_live(trained: Trained, device: str, base: str | None = None, base_revision: str | None = None) -> Answerer:
    """The pretrained model by its name, with the trained parts in it.

    base: the pretrained model by another name or folder than it was trained under. Raises StoreStale when that name
    means other weights than those that were trained on.
    """
    producer = trained.producer
    known = producer["model"]
    name, revision = (known["name"], known["revision"]) if base is None else (base, base_revision)
    loaded = load_pretrained(name, revision, known["precision"], choose_device(device), known.get("answers"))
    if loaded.weights_digest != known["weights"]:
        raise StoreStale(
            f"{name} is not the model that {trained.where} was trained on: {_difference(loaded, known)}; "
            "give the old checkpoint back, or extract and train again"
        )
    loaded = as_stored(loaded, known)
    weights = late_weights(loaded, producer["late"])
    model = stage_two(trained.recipe, producer, weights.__getitem__)
    model.load_trainable_state_dict(trained.weights)
    task = producer["task"]
    return Answerer(LiveModel(loaded, model.eval()), task_of(producer), task["target_ids"], task["max_length"])


def as_stored(loaded: LoadedModel, known: Mapping[str, Any]) -> LoadedModel:
    """A model with the streams, and the form of maps, that the `model` entry of a store's producer names."""
    loaded = loaded.only(known["streams"]) if "streams" in known else loaded
    return loaded.pooled(MapForm.parse(known["maps"])) if known.get("maps") else loaded


def _difference(loaded: LoadedModel, known: Mapping[str, Any]) -> str:
    """In what a model is not the one that is known, in words."""
    told = [f"weights {loaded.weights_digest[:12]}.. now, {known['weights'][:12]}.. then"]
    if loaded.revision != known["revision"]:
        told.append(f"revision {loaded.revision} now, {known['revision']} then")
    now, then = loaded.config_document(), known["config"]
    for key in sorted(now.keys() & then.keys()):
        if now[key] != then[key]:
            told.append(f"config {key} {now[key]!r} now, {then[key]!r} then")
            break
    return "; ".join(told)


def run_source(producer: Mapping[str, Any], task: Task, data: str | None) -> Source:
    """The rows to score: those trained on, split as they were for it, or other data with the same columns."""
    known = producer["data"]
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
