"""Live ways as lines beside the runs of a comparison: what they cost, without a score, which nobody trained them to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..report.charts import Series

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..report.read_run import RunRecord
    from .document import Bench

_ROOM = 0.05


@dataclass(frozen=True)
class LiveCosts:
    """Upright lines for charts of a score over memory, in MiB, and over seconds, and what is to be said of them."""

    memory: Sequence[Series] = ()
    seconds: Sequence[Series] = ()
    notes: Sequence[str] = ()


def live_costs(bench: Bench | None, runs: Sequence[RunRecord], scores: Sequence[float]) -> LiveCosts:
    """Of the live ways that were measured, as high as the scores reach.

    Memory is with the imports, as that of runs is; seconds are those of steps over as many examples as the longest run saw.
    """
    ways = [way for way in bench.ways if way.name != "stage-two" and way.error is None] if bench is not None else []
    if bench is None or not scores or not ways:
        return LiveCosts()
    low, high = min(scores), max(scores)
    if low == high:
        low, high = low - _ROOM * abs(low or 1), high + _ROOM * abs(high or 1)
    examples = max((int(run.steps[-1]["examples"]) for run in runs if run.steps), default=0)
    memory, seconds = [], []
    for way in ways:
        if way.rounds[0].memory == "resident":
            mebibytes = ((way.peak_memory_bytes or 0) + (way.imports_bytes or 0)) / 2**20
            memory.append(_upright(f"{way.label}: cost alone", mebibytes, low, high))
        if examples:
            spent = (way.seconds_a_step or 0.0) / bench.examples_a_step * examples
            seconds.append(_upright(f"{way.label}: cost alone", spent, low, high))
    notes = [
        "Upright lines are live ways that `sherl-cache bench` measured: what they cost, and no score. Their seconds are those "
        f"of steps over {examples:,} examples, as many as the longest run here saw."
    ]
    if not memory:
        notes.append("Their memory is a GPU's and that of the runs the process's, so that it is not drawn.")
    if any(run.facts["store_fingerprint"] != bench.store_fingerprint for run in runs):
        notes.append("They were measured on another store than some of the runs read: compare with care.")
    return LiveCosts(memory, seconds, notes)


def _upright(name: str, x: float, low: float, high: float) -> Series:
    return Series(name, [(x, low), (x, high)])
