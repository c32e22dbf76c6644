"""The producer block of a store's plan: what stage two and the live model need to know and storage only carries."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from .answer_texts import target_ids
from .tasks import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .load import LoadedModel
    from .prepare import ExtractSettings
    from .text import EncodeStats


def producer_block(
    settings: ExtractSettings,
    loaded: LoadedModel,
    task: Task,
    late: int,
    max_length: int,
    stats: Mapping[str, EncodeStats],
    synthetic: bool,
) -> dict[str, Any]:
    """The whole block of a store that is planned; `late`: late blocks whose weights it holds."""
    return {
        "model": describe_model(loaded),
        "task": describe_task(task, loaded, max_length),
        "data": {
            "name": settings.data,
            "task": settings.task,
            "validation": settings.validation,
            "revision": settings.data_revision,
            "splits": settings.splits,
            "limit": settings.limit,
            "synthetic": synthetic,
            "truncated": {split: part.truncated for split, part in stats.items()},
        },
        "late": late,
        "extract": {**asdict(settings), "text_columns": list(settings.text_columns)},
    }


def describe_model(loaded: LoadedModel) -> dict[str, Any]:
    """The `model` entry: its name and revision, from which the live model is loaded, and its config as plain JSON."""
    return {
        "name": loaded.name,
        "revision": loaded.revision,
        "model_type": loaded.config.model_type,
        "streams": [stream.name for stream in loaded.table.streams],
        "config": loaded.config_document(),
        "weights": loaded.weights_digest,
        "precision": loaded.precision,
        "answers": "text" if loaded.table.text_form == "continuation" else None,
    }


def describe_task(task: Task, loaded: LoadedModel, max_length: int) -> dict[str, Any]:
    """The `task` entry: the task itself, the longest input in tokens, and the token ids of each label's text.

    `target_ids` is None where answers are an open set or the model does not answer in text.
    """
    form, found = loaded.table.text_form, None
    if form in ("text_to_text", "continuation") and task.label_texts is not None:
        encoded = target_ids(task.label_texts, loaded.tokenizer, form)
        found = [[int(token) for token in ids] for ids in encoded]
    return {**task.to_json(), "max_length": max_length, "target_ids": found}


def task_names(producer: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the tasks that examples of a store may have in their column `task`, by their numbers."""
    task = producer["task"]
    return tuple(task.get("tasks") or (task.get("name", ""),))


def task_of(producer: Mapping[str, Any]) -> Task:
    """The task that a producer block describes."""
    return Task.from_json({field.name: producer["task"][field.name] for field in fields(Task)})
