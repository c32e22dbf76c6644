"""Texts of the examples that a page names, read from the data itself: a store keeps tokens and no texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...storage.errors import SherlCacheError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .read_run import RunRecord


@dataclass(frozen=True)
class Texts:
    """What was found: a text for each of `columns`, by `source_id`; problem: why there is none."""

    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]] = field(default_factory=dict)
    problem: str | None = None

    def of(self, source_id: str) -> list[str]:
        """Cells of a table."""
        return list(self.rows.get(source_id, ["not found"] * len(self.columns)))


def read_texts(run: RunRecord, wanted: Sequence[str]) -> Texts:
    """Texts of some validation rows of a run, from the data that it was trained on. Where they cannot be read, the page says
    so.
    """
    from ...stages.producer import task_of
    from ...stages.row_texts import row_texts
    from ..live import run_source

    task = task_of(run.facts["producer"])
    marks = {} if run.answers is None else run.answers.marks
    try:
        source = run_source(run.facts["producer"], task, None)
        return Texts(task.columns, row_texts(source, "validation", task, {row: marks.get(row) for row in wanted}))
    except (SherlCacheError, OSError) as error:
        return Texts(task.columns, problem=str(error))
