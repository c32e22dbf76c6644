"""Several runs side by side; those that differ in their seeds alone are drawn as one."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING

from ..bench.beside_runs import live_costs
from ..progress import duration, size
from .charts import line_chart, stacked_bars
from .costs import mean_seconds
from .page import Figure, Page, Section, Table
from .seeds import Group, groups_of, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..bench.document import Bench
    from .read_run import RunRecord


def comparison_page(runs: Sequence[RunRecord], bench: Bench | None = None) -> Page:
    """Scores, memory and time of several runs. Those that measure something else than the first are told, not ranked. bench:
    live ways whose costs are drawn beside.
    """
    metric = next((run.metric for run in runs if run.validations), "none")
    ranked = sorted(
        groups_of([run for run in runs if run.best is not None and run.metric == metric]),
        key=lambda group: _mean_value(group) * (1 if metric == "loss" else -1),
    )
    answer = f"{len(runs)} runs, none with a score yet"
    if ranked:
        ahead = f" is ahead of {len(ranked) - 1} with" if ranked[1:] else ":"
        answer = f"{ranked[0].name}{ahead} {metric} {_told_value(ranked[0])}"
    return Page(
        title="Comparison of runs",
        question=f"Which of {len(runs)} runs does best, and at what price?",
        answer=answer,
        sections=[_table(runs, ranked, metric), _curves(runs, metric), _prices(ranked, metric, bench), _time(runs)],
    )


def _mean_value(group: Group) -> float:
    return mean(map(_value, group.runs))


def _told_value(group: Group) -> str:
    around = f" ± {spread([*map(_value, group.runs)]):.4f}" if group.runs[1:] else ""
    return f"{_mean_value(group):.4f}{around}"


def _value(run: RunRecord) -> float:
    assert run.best is not None
    return float(run.best["validation"]["value"])


def _table(runs: Sequence[RunRecord], ranked: Sequence[Group], metric: str) -> Section:
    rows, scored = [], [run for group in ranked for run in group.runs]
    for run in [*scored, *(run for run in runs if run not in scored)]:
        score = "-" if run.best is None else f"{run.metric} {_value(run):.4f}"
        trained = "-" if run.result is None else f"{run.result['trained_parameters']:,}"
        state = "finished" if run.result is not None else f"{len(run.steps):,} steps so far"
        rows.append(
            [
                run.name,
                run.recipe.name,
                str(run.recipe.seed),
                score,
                duration(run.seconds),
                size(run.peak_memory),
                trained,
                state,
            ]
        )
    columns = ["run", "recipe", "seed", "best", "time", "peak memory", "trained parameters", "state"]
    stores = {run.facts["store_fingerprint"] for run in runs}
    notes = (
        [] if len(stores) == 1 else [f"The runs read {len(stores)} different stores: compare their scores with care."]
    )
    tables = [Table(columns, rows, "each run")]
    if any(group.runs[1:] for group in ranked):
        notes.append("Lines and marks of several seeds are their mean; the band around is one standard deviation.")
        tables.insert(0, _seeds(ranked, metric))
    return Section("runs", "Runs", notes, tables=tables)


def _seeds(ranked: Sequence[Group], metric: str) -> Table:
    rows = [
        [
            group.name,
            ", ".join(str(run.recipe.seed) for run in group.runs),
            _told_value(group),
            duration(mean(run.seconds for run in group.runs)),
            size(mean(run.peak_memory for run in group.runs)),
        ]
        for group in ranked
    ]
    columns = ["recipe", "seeds", f"best {metric}, mean ± s.d.", "time, mean", "peak memory, mean"]
    return Table(columns, rows, "seeds taken together")


def _curves(runs: Sequence[RunRecord], metric: str) -> Section:
    begun = groups_of([run for run in runs if run.steps])
    losses = [group.line(lambda run: {line["step"]: line["loss"] for line in run.steps}) for group in begun]
    figures = [Figure(line_chart(losses, "step", "loss"), "Training loss")] if losses else []
    scored = groups_of([run for run in runs if run.validations and run.metric == metric])
    scores = [
        group.line(lambda run: {line["step"]: line["validation"]["value"] for line in run.validations})
        for group in scored
    ]
    figures += [Figure(line_chart(scores, "step", metric), f"Validation {metric}")] if scores else []
    return Section("curves", "Loss and score", [] if figures else ["No step is recorded yet."], figures)


def _prices(ranked: Sequence[Group], metric: str, bench: Bench | None) -> Section:
    if not ranked:
        return Section("price", "Score against its price", ["No run has a score yet."])
    memory = [group.mark(lambda run: (run.peak_memory / 2**20, _value(run))) for group in ranked]
    seconds = [group.mark(lambda run: (run.seconds, _value(run))) for group in ranked]
    scored = [run for group in ranked for run in group.runs]
    live = live_costs(bench, scored, [_value(run) for run in scored])
    figures = [
        Figure(line_chart([*memory, *live.memory], "peak memory, MiB", metric), f"Best {metric} against memory"),
        Figure(line_chart([*seconds, *live.seconds], "seconds", metric), f"Best {metric} against time"),
    ]
    return Section("price", "Score against its price", live.notes, figures)


def _time(runs: Sequence[RunRecord]) -> Section:
    rows = [(run.name, {name: 1000 * value for name, value in mean_seconds(run).items()}) for run in runs if run.steps]
    figures = [Figure(stacked_bars(rows, "ms"), "Where a step's time goes, means")] if rows else []
    return Section("time", "Time", [] if rows else ["No step is recorded yet."], figures)
