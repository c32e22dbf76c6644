"""How a fusion weighs its taps, beside how much the taps repeat one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .charts import Series, line_chart, number
from .page import Figure, Section, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..analysis.document import Analysis, StreamAnalysis
    from .read_run import RunRecord

_DRAWN_CLASSES: Final = 7
_LISTED_CLASSES: Final = 30


def layers_section(run: RunRecord, analysis: Analysis | None, missing: str) -> list[Section]:
    """The weights, where the fusion of a run has some. missing: what to do where there is no analysis of the taps."""
    lines = [line for line in run.steps if "layer_weights" in line]
    if not lines:
        return []
    found = {} if run.layer_weights is None else run.layer_weights["streams"]
    figures: list[Figure] = []
    tables: list[Table] = []
    for stream, weights in found.items():
        redundancy = None if analysis is None else analysis.streams.get(stream)
        figures.append(_by_class(run, stream, weights))
        tables.append(_table(run, stream, weights, redundancy))
    figures += [_over_training(run, stream, lines) for stream in lines[-1]["layer_weights"]]
    notes = []
    if found:
        assert run.layer_weights is not None
        notes.append(
            f"Weights on the validation rows at the end of epoch {run.layer_weights['epoch'] + 1}, the best; their spread is "
            "the standard deviation over rows, a row being a token or whatever the fusion weighs at once."
        )
    else:
        notes.append("By class they are told once a validation has ended.")
    notes.append(missing if analysis is None else "The maps of redundancy below are of the same taps.")
    return [Section("layers", "Weights of the layers", notes, figures, tables)]


def tap_names(run: RunRecord, stream: str, count: int) -> list[str]:
    """Names of the first taps that a run reads of a stream."""
    taps = ((run.result or {}).get("taps") or {}).get(stream, [])
    known = [f"h{tap:02d}" for tap in taps[:count]]
    return known if len(known) == count else [f"tap {place + 1}" for place in range(count)]


def _by_class(run: RunRecord, stream: str, weights: Mapping[str, Any]) -> Figure:
    points = [
        Series(
            "all rows", list(zip(weights["taps"], weights["mean"], strict=True)), spread=weights["spread"], least=0.0
        ),
        *(
            Series(run.label(each["label"]), list(zip(weights["taps"], each["mean"], strict=True)))
            for each in weights["classes"][:_DRAWN_CLASSES]
        ),
    ]
    left = len(weights["classes"]) - _DRAWN_CLASSES
    classes = "" if not weights["classes"] else ", and of the rows of each class"
    more = f"; {left} more in the table" if left > 0 else ""
    said = f"Mean weight of each tap of {stream} over all rows, the band one standard deviation{classes}{more}"
    return Figure(line_chart(points, "tap", "mean weight"), said)


def _table(run: RunRecord, stream: str, weights: Mapping[str, Any], redundancy: StreamAnalysis | None) -> Table:
    classes = weights["classes"][:_LISTED_CLASSES]
    columns = ["tap", "mean weight ± spread", *(run.label(each["label"]) for each in classes)]
    rows = [
        [f"h{tap:02d}", *(f"{each['mean'][place]:.3f} ± {each['spread'][place]:.3f}" for each in (weights, *classes))]
        for place, tap in enumerate(weights["taps"])
    ]
    if redundancy is not None:
        columns += ["cosine to the other taps", "CKA to the other taps"]
        for row, tap in zip(rows, weights["taps"], strict=True):
            row += _likeness(redundancy, tap)
    rows.append(["rows", f"{weights['rows']:,}", *(f"{each['rows']:,}" for each in classes)])
    rows[-1] += [""] * (len(columns) - len(rows[-1]))
    return Table(columns, rows, f"{stream}: weights of the taps{', by class' if classes else ''}")


def _likeness(redundancy: StreamAnalysis, tap: int) -> list[str]:
    """Mean cosine and CKA of a tap to every other one that was looked at."""
    known = [each.tap for each in redundancy.taps]
    if tap not in known:
        return ["-", "-"]
    place = known.index(tap)
    told = []
    for row in (redundancy.cosine[place], redundancy.cka[place]):
        others = [value for other, value in enumerate(row) if other != place and value is not None]
        told.append(f"{sum(others) / len(others):.3f}" if others else "-")
    return told


def _over_training(run: RunRecord, stream: str, lines: Sequence[Mapping[str, Any]]) -> Figure:
    last = lines[-1]["layer_weights"][stream]
    names = tap_names(run, stream, len(last))
    over_time = [
        Series(name, [(line["step"], line["layer_weights"][stream][place]) for line in lines])
        for place, name in enumerate(names)
    ]
    spreads = lines[-1].get("layer_weight_spreads", {}).get(stream)
    rows = [
        [name, number(last[place]), "-" if spreads is None else number(spreads[place])]
        for place, name in enumerate(names)
    ]
    table = Table(["tap", "mean weight", "spread over rows"], rows, f"{stream}, the batch of the last step")
    said = f"Mean weight of each tap of {stream} in the batches of training"
    return Figure(line_chart(over_time, "step", "mean weight"), said, table)
