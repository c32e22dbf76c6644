"""The page of one run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from ..progress import duration, size
from .charts import Series, line_chart, number, stacked_bars, thinned
from .page import Figure, Page, Section, Table
from .store_page import analysis_sections, bytes_section, shown_place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...storage import Store
    from ..analysis.document import Analysis
    from .read_run import Answers, RunRecord

_PARTS_OF_A_STEP: Final = ("stall", "read", "fusion", "late", "head", "backward", "optimizer")
_SHOWN_WRONG: Final = 25
_MOST_LABELS: Final = 30


def run_page(run: RunRecord, store: Store | None, analysis: Analysis | None) -> Page:
    """Everything that is recorded of a run, and of its store where that is given."""
    sections = [_curves(run)]
    sections += _layers(run)
    if analysis is not None and store is not None:
        sections += analysis_sections(analysis, store.digest)
    sections += [_memory(run), *_time(run)]
    if store is not None:
        sections.append(bytes_section(store))
    sections += [*_answers(run), _trained(run), _recipe(run)]
    return Page(
        title=f"{run.name}: report",
        question=f"How well does {run.recipe.name} answer {run.task['name']} on "
        f"{shown_place(run.facts['producer']['data']['name'])}?",
        answer=answer(run),
        sections=sections,
    )


def answer(run: RunRecord) -> str:
    """What came of a run, in one line."""
    state = "" if run.result is not None else f", not finished after {len(run.steps):,} steps"
    cost = f"{duration(run.seconds)}, {size(run.peak_memory)} at most"
    if run.best is None:
        return f"No score yet: {cost}{state}"
    found = run.best["validation"]
    return f"{found['metric']} {found['value']:.4f} in epoch {run.best['epoch'] + 1}: {cost}{state}"


def _curves(run: RunRecord) -> Section:
    figures = []
    losses = [Series("train", [(line["step"], line["loss"]) for line in run.steps])]
    held_out = [(line["step"], line["validation"]["loss"]) for line in run.validations if "loss" in line["validation"]]
    losses += [Series("validation", held_out, marks=True)] if held_out else []
    if run.steps:
        figures.append(Figure(line_chart(losses, "step", "loss"), f"Loss, seed {run.recipe.seed}", _points(losses)))
    if run.validations and run.metric != "loss":
        scores = [Series(run.metric, [(line["step"], line["validation"]["value"]) for line in run.validations])]
        figures.append(Figure(line_chart(scores, "step", run.metric), f"Validation {run.metric}", _points(scores)))
    return Section("curves", "Loss and score", [] if figures else ["No step is recorded yet."], figures)


def _layers(run: RunRecord) -> list[Section]:
    lines = [line for line in run.steps if "layer_weights" in line]
    if not lines:
        return []
    figures = []
    for stream in lines[0]["layer_weights"]:
        count = len(lines[0]["layer_weights"][stream])
        taps = ((run.result or {}).get("taps") or {}).get(stream, [])
        names = (
            [f"h{tap:02d}" for tap in taps[:count]] if len(taps) >= count else [f"tap {n + 1}" for n in range(count)]
        )
        over_time = [
            Series(name, [(line["step"], line["layer_weights"][stream][index]) for line in lines])
            for index, name in enumerate(names)
        ]
        spreads = lines[-1].get("layer_weight_spreads", {}).get(stream)
        last = lines[-1]["layer_weights"][stream]
        rows = [
            [name, number(last[index]), "not recorded" if spreads is None else number(spreads[index])]
            for index, name in enumerate(names)
        ]
        table = Table(["tap", "mean weight", "spread over rows"], rows, f"{stream}, last step")
        figures.append(
            Figure(
                line_chart(over_time, "step", "mean weight"),
                f"Mean weight of each tap of {stream} over training",
                table,
            )
        )
    note = "Means over the rows of each batch; the spread is their standard deviation over rows, in the last step."
    return [Section("layers", "Weights of the layers", [note], figures)]


def _memory(run: RunRecord) -> Section:
    lines = [line for line in run.steps if "memory" in line]
    figures = []
    if lines:
        peak = [Series("peak", [(line["step"], line["memory"] / 2**20) for line in lines])]
        figures.append(
            Figure(line_chart(peak, "step", "peak memory, MiB"), "Peak memory of the process so far", _points(peak))
        )
    last = next((line for line in reversed(run.steps) if "bytes" in line), None)
    if last is not None:
        parts = {**last["bytes"], "read buffers": last.get("read_buffers", 0)}
        bar = stacked_bars([("tensors", {name: value / 2**20 for name, value in parts.items()})], "MiB")
        rows = [[name, size(value)] for name, value in parts.items()]
        figures.append(Figure(bar, "What the tensors of training hold", Table(["part", "memory"], rows)))
    notes = [
        "Activations between forward and backward, the libraries and the interpreter make up the rest of the peak."
    ]
    return Section("memory", "Memory", notes if figures else ["Nothing is recorded yet."], figures)


def _time(run: RunRecord) -> list[Section]:
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


def _answers(run: RunRecord) -> list[Section]:
    answers, labels = run.answers, run.task["labels"]
    if answers is None:
        return []
    known = [
        (source, label, given)
        for source, label, given in zip(answers.source_ids, answers.labels, answers.predictions, strict=True)
        if not math.isnan(label) and not math.isnan(given)
    ]
    if run.task["kind"] == "retrieval" or not known:
        return []
    if labels is None:
        worst = sorted(known, key=lambda row: -abs(row[1] - row[2]))[:_SHOWN_WRONG]
        rows = [[source, number(label), number(given), number(abs(label - given))] for source, label, given in worst]
        table = Table(["example", "label", "answer", "error"], rows, "largest errors")
        return [Section("answers", "Answers", _about(answers, known), tables=[table])]
    return [_classes(answers, known, labels)]


def _classes(answers: Answers, known: Sequence[tuple[str, float, float]], labels: Sequence[str]) -> Section:
    counts: dict[tuple[int, int], int] = {}
    for _, label, given in known:
        counts[int(label), int(given)] = counts.get((int(label), int(given)), 0) + 1
    tables = []
    if len(labels) <= _MOST_LABELS:
        rows = [
            [str(name), *(f"{counts.get((r, c), 0):,}" for c in range(len(labels)))] for r, name in enumerate(labels)
        ]
        tables.append(Table(["label \\ answer", *map(str, labels)], rows, "confusion matrix, examples"))
    wrong = [(source, int(label), int(given)) for source, label, given in known if label != given]
    wrong.sort(key=lambda row: -counts[row[1], row[2]])
    rows = [[source, _name(labels, label), _name(labels, given)] for source, label, given in wrong[:_SHOWN_WRONG]]
    if rows:
        tables.append(Table(["example", "label", "answer"], rows, f"{len(rows):,} of {len(wrong):,} wrong answers"))
    notes = [
        *_about(answers, known),
        "Examples are named, not shown: a store may be private. Those of the most frequent mistake come first.",
    ]
    return Section("answers", "Answers", notes, tables=tables)


def _about(answers: Answers, known: Sequence[Any]) -> list[str]:
    return [f"Answers of the best epoch on {len(known):,} of {len(answers.source_ids):,} validation rows with a label."]


def _name(labels: Sequence[str], index: int) -> str:
    return str(labels[index]) if 0 <= index < len(labels) else str(index)


def _trained(run: RunRecord) -> Section:
    model, data = run.facts["producer"]["model"], run.facts["producer"]["data"]
    rows = [
        ["fusion", str(run.recipe.fusion.name)],
        ["late blocks", f"{run.recipe.late.blocks}, {run.recipe.late_mode}"],
        ["tuner", str(run.recipe.tuner.name or "none")],
        ["pretrained model", f"{shown_place(model['name'])} ({model['model_type']}, {model['precision']})"],
        ["its weights", str(model["weights"])],
        ["data", shown_place(data["name"]) + (", synthetic" if data["synthetic"] else "")],
        ["store", str(run.facts["store_fingerprint"])],
    ]
    if run.result is not None:
        rows.insert(0, ["trained parameters", f"{run.result['trained_parameters']:,}"])
        rows.append(["trained weights", str(run.result["weights_digest"])])
    return Section("trained", "What was trained, on what", tables=[Table(["what", "value"], rows)])


def _recipe(run: RunRecord) -> Section:
    return Section("recipe", "Recipe", text=run.recipe.to_yaml())


def _points(series: Sequence[Series]) -> Table:
    """The numbers of a chart, thinned to some thirty a line."""
    rows = []
    for each in series:
        points = thinned(each.points)
        step = max(len(points) // 30, 1)
        rows += [[each.name, number(x), number(y)] for x, y in [*points[::step], points[-1]]]
    return Table(["line", "step", "value"], list(map(list, dict.fromkeys(map(tuple, rows)))))
