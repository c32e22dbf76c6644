"""bench.html: one page with the bars, the numbers behind them and every setting; it asks for nothing from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..progress import duration, size
from ..report.charts import stacked_bars
from ..report.page import Figure, Page, Section, Table, render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .document import Bench, Way


WAY_COLUMNS = (
    "way",
    "a step",
    "round by round",
    "times stage two",
    "peak memory",
    "stage two's over it",
    "waits",
    "trained",
)


def picture(bench: Bench) -> str:
    """The page as HTML."""
    measured = [way for way in bench.ways if way.seconds_a_step is not None]
    return render(
        Page(
            title="Bench",
            question=f"What does a training step of {bench.settings['model']} take on this machine?",
            answer=answer(bench),
            sections=[_ways(bench, measured), *_extraction(bench), _settings(bench), _method(bench)],
        )
    )


def answer(bench: Bench) -> str:
    """Stage two beside the live way that takes the most memory, in one line."""
    measured = [way for way in bench.ways if way.error is None]
    if not measured:
        return f"none of {len(bench.ways)} ways could be measured"
    ours = [way for way in measured if way.name == "stage-two"]
    dearest = sorted(
        (way for way in measured if way.name != "stage-two"), key=lambda way: -(way.peak_memory_bytes or 0)
    )
    told = (
        f"{way.label}: {seconds(way.seconds_a_step or 0)} a step in {size(way.peak_memory_bytes or 0)}"
        for way in (*ours, *dearest[:1])
    )
    return "; ".join(told)


def way_rows(bench: Bench) -> list[list[str]]:
    """One row a way, under WAY_COLUMNS."""
    ours = next((way for way in bench.ways if way.name == "stage-two" and way.error is None), None)
    return [_row(way, ours) for way in bench.ways]


def seconds(value: float) -> str:
    """Of a step: three digits are enough, and milliseconds below one tenth."""
    return f"{1000 * value:.1f} ms" if value < 0.1 else f"{value:.3g} s"


def _spent(value: float) -> str:
    """Of a whole extraction."""
    return seconds(value) if value < 10 else duration(value)


def extraction_lines(bench: Bench) -> list[str]:
    """What extraction costs, and after how many epochs it is paid for."""
    found = bench.extraction
    if found is None:
        return []
    if found.train_seconds is None or found.peak_memory_bytes is None:
        return [f"extraction is not measured: {found.error}"]
    lines = [
        f"extraction of the training split, {bench.train_examples:,} examples, takes {_spent(found.train_seconds)} in "
        f"{size(found.peak_memory_bytes)}: the early layers alone, at their speed over the measured examples, without writing"
    ]
    for item in bench.paid_for:
        if item.epochs is None:
            lines.append(f"extraction is not paid for against {item.against}: its steps are no slower than stage two's")
        else:
            lines.append(f"extraction is paid for after {item.epochs:.2f} epochs against {item.against}")
    return lines


def _row(way: Way, ours: Way | None) -> list[str]:
    if way.seconds_a_step is None or way.peak_memory_bytes is None or way.fastest is None or way.slowest is None:
        return [way.label, f"not measured: {way.error}", *[""] * (len(WAY_COLUMNS) - 2)]
    times = share = "-"
    if ours is not None and ours.seconds_a_step and ours.peak_memory_bytes:
        times = f"{way.seconds_a_step / ours.seconds_a_step:.2f}"
        share = f"{ours.peak_memory_bytes / way.peak_memory_bytes:.3f}"
    return [
        way.label,
        seconds(way.seconds_a_step),
        f"{seconds(way.fastest)} to {seconds(way.slowest)}",
        times,
        size(way.peak_memory_bytes),
        share,
        f"{way.wait_share or 0:.1%}" if way.name == "stage-two" else "-",
        f"{way.trained_parameters:,}",
    ]


def _ways(bench: Bench, measured: Sequence[Way]) -> Section:
    figures = []
    if measured:
        memory = [(way, (way.peak_memory_bytes or 0) / 2**20) for way in measured]
        times = [(way, 1000 * (way.seconds_a_step or 0)) for way in measured]
        figures = [_bars(memory, "MiB", "Peak memory"), _bars(times, "ms", "Time of a training step")]
    return Section("ways", "Ways to train", figures=figures, tables=[Table(WAY_COLUMNS, way_rows(bench))])


def _bars(values: Sequence[tuple[Way, float]], unit: str, caption: str) -> Figure:
    rows = [(_in_chart(way), {"from the store" if way.name == "stage-two" else "live": value}) for way, value in values]
    numbers = Table(["way", unit], [[way.label, f"{value:,.1f}"] for way, value in values])
    return Figure(stacked_bars(rows, unit), f"{caption}, {unit}", numbers)


def _in_chart(way: Way) -> str:
    """A label that a chart need not cut."""
    return "fine-tuning" if way.name == "full" else way.label


def _extraction(bench: Bench) -> list[Section]:
    notes = [f"{line[0].upper()}{line[1:]}." for line in extraction_lines(bench)]
    return [Section("extraction", "Extraction", notes)] if notes else []


def _settings(bench: Bench) -> Section:
    rows = [[name, str(value)] for name, value in bench.settings.items() if value is not None]
    return Section("settings", "Settings", tables=[Table(["setting", "value"], rows)])


def _method(bench: Bench) -> Section:
    allocator = any(one.memory == "allocator" for way in bench.ways for one in way.rounds)
    memory = (
        "Peak memory is that of the GPU's allocator."
        if allocator
        else "Peak memory is the resident set's high-water mark of the process, less what its imports take."
    )
    return Section(
        "method",
        "How it was measured",
        [
            "Every way ran in a process of its own, all ways in turn, on the same examples in the same order; a step is forward, "
            "backward and optimiser, and its time is the median over all rounds.",
            memory,
            "Stage two's time holds the wait for its batch; a live way's batch was made between the clocks. Live ways pad to the "
            "longest text of a batch, stage two packs. LoRA is on queries and values of every layer. A shared machine drifts: "
            "compare within this page.",
        ],
    )
