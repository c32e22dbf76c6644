"""Rows of the data that a store was made of, found again by what the store keeps of them: it keeps no texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .sources.contract import Picture
from .tasks import label_of
from .text import content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from ..storage import ExampleTable
    from .sources.contract import Source
    from .tasks import Task

CHANGED: Final = "the data have another row here by now"
_MARK_DIGITS: Final = 8


def mark_of(hashed: str) -> int:
    """The first 32 bits of a row's `content_hash`: enough to see that a row is another one."""
    return int(hashed[:_MARK_DIGITS], 16)


def marks_of(table: ExampleTable) -> NDArray[np.uint32]:
    """The mark of every example, [examples], read a unit at a time."""
    units = [
        np.asarray([mark_of(hashed) for hashed in part.column(0).to_pylist()], np.uint32)
        for part in table.batches(["content_hash"])
    ]
    return np.concatenate(units) if units else np.empty(0, np.uint32)


def row_texts(source: Source, split: str, task: Task, marks: Mapping[str, int | None]) -> dict[str, tuple[str, ...]]:
    """Texts of some rows, one a text column, by their `source_id`; of a picture the name of its file.

    marks: of each row that is wanted its mark, by which a row of texts is known again; None: not compared. Raises DataError
    where the data cannot be read.
    """
    found: dict[str, tuple[str, ...]] = {}
    numbers = iter(source.row_numbers(split))
    wanted = set(marks)
    labelled = bool(task.label_column) and task.label_column in source.columns(split)
    columns = [*task.columns, task.label_column] if labelled else list(task.columns)
    for batch in source.batches(split, columns):
        for values in zip(*(batch[column] for column in columns), strict=True):
            row = next(numbers)
            if str(row) not in wanted:
                continue
            texts, known = values[: len(task.columns)], marks[str(row)]
            if known is not None and not any(isinstance(value, Picture | list) for value in texts):
                label = label_of(task, values[-1], source=source.name, split=split, row=row) if labelled else None
                same = mark_of(content_hash([str(value) for value in texts], label)) == known
                texts = texts if same else (CHANGED,) * len(texts)
            found[str(row)] = tuple(map(_said, texts))
        if len(found) == len(wanted):
            break
    return found


def _said(value: Any) -> str:
    if isinstance(value, Picture):
        return value.name.rpartition("/")[2]
    said: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    return "; ".join(map(str, said))
