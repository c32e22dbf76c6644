"""Runs that differ in their seeds alone, taken together: a mean and its spread."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING

from ...storage import keys
from .charts import Series

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .read_run import RunRecord


@dataclass(frozen=True)
class Group:
    """One recipe over one store, with one seed or several."""

    name: str
    runs: Sequence[RunRecord]

    def line(self, points_of: Callable[[RunRecord], Mapping[int, float]]) -> Series:
        """Values by step, as a line: the mean over the seeds at every step that all of them have, with the standard
        deviation around it.
        """
        each = [points_of(run) for run in self.runs]
        steps = sorted(set(each[0]).intersection(*each[1:]))
        values = [[points[step] for points in each] for step in steps]
        return Series(
            self.name,
            [(step, mean(found)) for step, found in zip(steps, values, strict=True)],
            spread=[spread(found) for found in values] if len(each) > 1 else (),
        )

    def mark(self, point_of: Callable[[RunRecord], tuple[float, float]]) -> Series:
        """One point a run as one mark: the means, with the standard deviation of the second number."""
        places, values = zip(*map(point_of, self.runs), strict=True)
        around = [spread(values)] if len(values) > 1 else ()
        return Series(self.name, [(mean(places), mean(values))], marks=True, spread=around)


def groups_of(runs: Sequence[RunRecord]) -> list[Group]:
    """Every run in one group, in the order of their first runs. A group of several is named by its recipe, and by its first
    run where another group has that recipe's name.
    """
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        recipe = run.recipe.identity()
        recipe["seed"], recipe["data"]["seed"] = 0, 0
        found.setdefault(keys.digest([recipe, run.facts["store_fingerprint"]]), []).append(run)
    recipes = [members[0].recipe.name for members in found.values()]
    groups = []
    for members in found.values():
        first = members[0]
        name = first.recipe.name if recipes.count(first.recipe.name) == 1 else first.name
        groups.append(Group(first.name if len(members) == 1 else f"{name}, {len(members)} seeds", members))
    return groups


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 of one value."""
    return stdev(values) if len(values) > 1 else 0.0
