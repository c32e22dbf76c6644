"""The page of one run."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ..progress import duration, size
from .answers import answers_section
from .charts import Series, line_chart, number, thinned
from .costs import memory_section, time_section
from .layers import layers_section
from .page import Figure, Page, Section, Table
from .places import shown_place
from .store_page import analysis_sections, bytes_section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...storage import Store
    from ..analysis.document import Analysis
    from .read_run import RunRecord
    from .texts import Texts


def run_page(run: RunRecord, store: Store | None, analysis: Analysis | None, texts: Texts | None = None) -> Page:
    """Everything that is recorded of a run, and of its store where that is given. texts: of the examples that are named, where
    they are to be shown.
    """
    sections = [_curves(run), *layers_section(run, analysis, _how_to_analyze(store))]
    if analysis is not None and store is not None:
        sections += analysis_sections(analysis, store.digest)
    sections += [memory_section(run), *time_section(run)]
    if store is not None:
        sections.append(bytes_section(store))
    sections += [answers_section(run, texts), _trained(run, store), _recipe(run)]
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


def _how_to_analyze(store: Store | None) -> str:
    """What to do for the redundancy of the taps."""
    if store is None:
        return "How much the taps repeat one another is shown where --store names the store that the run read."
    place = shlex.quote(shown_place(str(store.root)))
    return f"How much the taps repeat one another is not known yet: sherl-cache analyze --store {place}, then this report again."


def _trained(run: RunRecord, store: Store | None) -> Section:
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
    if store is not None:
        rows.append(["its digest", store.digest])
    if run.result is not None:
        rows.insert(0, ["trained parameters", f"{run.result['trained_parameters']:,}"])
        rows.append(["trained weights", str(run.result["weights_digest"])])
    begun = [[key, str(value)] for key, value in run.facts.get("environment", {}).items()]
    tables = [Table(["what", "value"], rows), *([Table(["what", "value"], begun, "begun with")] if begun else [])]
    return Section("trained", "What was trained, on what", tables=tables)


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
