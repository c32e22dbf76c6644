"""What a run takes: memory by part, and where the time of a step goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..progress import size
from .charts import Series, number, stacked_areas, stacked_bars
from .page import Figure, Section, Table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .read_run import RunRecord

_PARTS_OF_A_STEP: Final = ("stall", "read", "fusion", "late", "head", "backward", "optimizer")
_PARTS_OF_MEMORY: Final = {"late": "late weights", "fusion": "fusion", "head": "head", "read_buffers": "read slots"}
_LISTED_STEPS: Final = 30
_MIB: Final = 2**20


def memory_section(run: RunRecord) -> Section:
    """Memory over time: what the tensors of training hold, part on part, below the peak of the process."""
    lines = [line for line in run.steps if "memory" in line]
    if not lines:
        return Section("memory", "Memory", ["Nothing is recorded yet."])
    each = [_parts(line) for line in lines]
    names = list(dict.fromkeys(name for parts in each for name in parts))
    steps = [line["step"] for line in lines]
    areas = [
        Series(name, [(step, parts.get(name, 0) / _MIB) for step, parts in zip(steps, each, strict=True)])
        for name in names
    ]
    peak = Series("peak of the process", [(line["step"], line["memory"] / _MIB) for line in lines])
    stride = max(len(lines) // _LISTED_STEPS, 1)
    places = sorted({*range(0, len(lines), stride), len(lines) - 1})
    rows = [
        [f"{steps[place]:,}", *(size(each[place].get(name, 0)) for name in names), size(lines[place]["memory"])]
        for place in places
    ]
    chart = stacked_areas(areas, peak, "step", "memory, MiB")
    figure = Figure(chart, "Memory over time", Table(["step", *names, "peak"], rows, "memory by part"))
    last = Table(["part", "memory"], [[name, size(each[-1].get(name, 0))] for name in names], "in the last step")
    return Section(
        "memory",
        "Memory",
        [
            "The areas are what tensors of training hold. The rest, up to the peak, are the libraries, the interpreter and "
            "activations between forward and backward. late weights counts frozen and trained ones; optimizer is its state."
        ],
        [figure],
        [last],
    )


def time_section(run: RunRecord) -> list[Section]:
    """Where the time of a step goes, in the mean; nothing before the first step."""
    if not run.steps:
        return []
    means = mean_seconds(run)
    figure = Figure(
        stacked_bars([("a step", {name: value * 1000 for name, value in means.items()})], "ms"),
        f"Where a step of {1000 * sum(means.values()):.4g} ms goes, mean of {len(run.steps):,} steps",
        Table(["part", "ms"], [[name, number(1000 * value)] for name, value in means.items()]),
    )
    return [
        Section("time", "Time", ["wait: for data; read: decoding it; other: the loss, checks and the log."], [figure])
    ]


def mean_seconds(run: RunRecord) -> dict[str, float]:
    """Mean seconds of a step by part; the parts sum to the step."""
    count = len(run.steps)
    sums = {
        name: sum(line["seconds"].get(name, 0.0) for line in run.steps) / count for name in ("step", *_PARTS_OF_A_STEP)
    }
    step = sums.pop("step")
    sums["read"] = max(sums["read"] - sums["stall"], 0.0)
    found = {"wait": sums.pop("stall"), **sums}
    return {**found, "other": max(step - sum(found.values()), 0.0)}


def _parts(line: Mapping[str, Any]) -> dict[str, int]:
    """Bytes by part of one step, by the names of the page."""
    held = {**line.get("bytes", {}), "read_buffers": line.get("read_buffers", 0)}
    return {_PARTS_OF_MEMORY.get(name, name): value for name, value in held.items()}
