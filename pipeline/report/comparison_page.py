"""Several runs side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..bench.beside_runs import live_costs
from ..progress import duration, size
from .charts import Series, line_chart, stacked_bars
from .page import Figure, Page, Section, Table
from .run_page import mean_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..bench.document import Bench
    from .read_run import RunRecord


def comparison_page(runs: Sequence[RunRecord], bench: Bench | None = None) -> Page:
    """Scores, memory and time of several runs. Those that measure something else than the first are told, not ranked. bench:
    live ways whose costs are drawn beside.
    """
    metric = next((run.metric for run in runs if run.validations), "none")
    ranked = [run for run in runs if run.best is not None and run.metric == metric]
    ranked.sort(key=lambda run: _value(run) * (1 if metric == "loss" else -1))
    answer = f"{len(runs)} runs, none with a score yet"
    if ranked:
        best = ranked[0]
        answer = (
            f"{best.name} is ahead of {len(ranked) - 1} with {metric} {_value(best):.4f}"
            if ranked[1:]
            else f"{best.name}: {metric} {_value(best):.4f}"
        )
    return Page(
        title="Comparison of runs",
        question=f"Which of {len(runs)} runs does best, and at what price?",
        answer=answer,
        sections=[_table(runs, ranked), _curves(runs, metric), _prices(ranked, metric, bench), _time(runs)],
    )


def _value(run: RunRecord) -> float:
    assert run.best is not None
    return float(run.best["validation"]["value"])


def _table(runs: Sequence[RunRecord], ranked: Sequence[RunRecord]) -> Section:
    rows = []
    for run in [*ranked, *(run for run in runs if run not in ranked)]:
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
    return Section("runs", "Runs", notes, tables=[Table(columns, rows)])


def _curves(runs: Sequence[RunRecord], metric: str) -> Section:
    losses = [Series(run.name, [(line["step"], line["loss"]) for line in run.steps]) for run in runs if run.steps]
    figures = [Figure(line_chart(losses, "step", "loss"), "Training loss")] if losses else []
    scores = [
        Series(run.name, [(line["step"], line["validation"]["value"]) for line in run.validations])
        for run in runs
        if run.validations and run.metric == metric
    ]
    figures += [Figure(line_chart(scores, "step", metric), f"Validation {metric}")] if scores else []
    return Section("curves", "Loss and score", figures=figures)


def _prices(ranked: Sequence[RunRecord], metric: str, bench: Bench | None) -> Section:
    live = live_costs(bench, ranked, [_value(run) for run in ranked])
    memory = [Series(run.name, [(run.peak_memory / 2**20, _value(run))], marks=True) for run in ranked]
    seconds = [Series(run.name, [(run.seconds, _value(run))], marks=True) for run in ranked]
    figures = []
    if ranked:
        figures.append(
            Figure(line_chart([*memory, *live.memory], "peak memory, MiB", metric), f"Best {metric} against memory")
        )
        figures.append(Figure(line_chart([*seconds, *live.seconds], "seconds", metric), f"Best {metric} against time"))
    return Section("price", "Score against its price", live.notes, figures)


def _time(runs: Sequence[RunRecord]) -> Section:
    rows = [(run.name, {name: 1000 * value for name, value in mean_seconds(run).items()}) for run in runs if run.steps]
    figures = [Figure(stacked_bars(rows, "ms"), "Where a step's time goes, means")] if rows else []
    return Section("time", "Time", figures=figures)
