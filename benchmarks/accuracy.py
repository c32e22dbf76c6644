"""Accuracy of the shipped recipes on real data, by a protocol that does not look at the dev set twice.

    python -m benchmarks.accuracy --data path/to/glue/SST-2 --task sst2 --limit 8000 --epochs 4 --seeds 3

1,000 training rows are held out. With one grid for every recipe, which is printed, learning rates are chosen on them (one
seed), then dropout (all seeds), by the rows among them that share no text with a training row: where training rows are
phrases of one another, as in SST-2, the others reward memory. The best epoch of a run is chosen on all of them. The
official dev set is scored once for each run of the chosen setting, by the live model on raw text. Give `--rates`,
`--late-rates` and `--dropouts` one value each to reuse what an earlier search chose.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from sherl_cache.pipeline.progress import size
from sherl_cache.stages.metrics import score
from sherl_cache.storage import Store

from .commands import sherl_cache, show

if TYPE_CHECKING:
    from collections.abc import Iterator

RECIPES = ("probe", "last", "sherl-paper", "sherl")
HELD_OUT = 1000
SHARED_TOKENS = 3  # a training row this long inside a held-out row makes it known
SEARCH_SEED = 100  # not one of the seeds that are reported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin/minilm")
    parser.add_argument("--data", required=True)
    parser.add_argument("--task")
    parser.add_argument("--encoding", default="bfloat16", help="how the store holds values, as in extract --encoding")
    parser.add_argument("--limit", type=int, help="training rows after the 1,000 held out; default all")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--search-epochs", type=int, help="of the search for learning rates; default: --epochs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--late-rates", type=float, nargs="+", default=[1e-4, 3e-4])
    parser.add_argument(
        "--dropouts",
        type=float,
        nargs="+",
        default=[0.0, 0.1],
        help="of taps and head; above 0 the late blocks drop too",
    )
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="recipe override for every run")
    parser.add_argument("--folder", type=Path, default=Path("accuracy"))
    parser.add_argument("--json", type=Path, help="also write every run's figures there")
    options = parser.parse_args()
    options.search_epochs = options.search_epochs or options.epochs

    store = options.folder / "cache"
    task = ("--task", options.task) if options.task else ()
    limit = ("--limit", str(options.limit)) if options.limit else ()
    extracted = sherl_cache(
        *("extract", "--model", options.model, "--data", options.data, *task, *limit),
        *("--splits", f"holdout:{HELD_OUT}", "--store", str(store), "--encoding", options.encoding),
    )
    print(
        f"grid: learning_rate {options.rates} x late.learning_rate {options.late_rates} (where late blocks train), "
        f"{options.search_epochs} epoch(s) each, seed {SEARCH_SEED}; then dropout {options.dropouts}, {options.seeds} seed(s), "
        f"{options.epochs} epochs each"
    )
    print(f"held out: {HELD_OUT} training rows; epochs {options.epochs}; batch 32; AdamW, linear decay, warm-up 6 %")
    options.clean = clean_rows(Store.open(store))
    print(f"{len(options.clean)} of the {HELD_OUT} share no text with a training row; settings are chosen on these")
    figures: list[dict[str, Any]] = []
    for recipe in options.recipes:
        for run in _chosen_runs(recipe, store, options):
            dev = sherl_cache("eval", "--run", run["run"], "--split", "test")
            figures.append({"recipe": recipe, "dev": dev, **run})
            print(
                f"{recipe} seed {run['seed']}: held out {run['best']:.4f}, dev {dev['value']:.4f}",
                file=sys.stderr,
                flush=True,
            )
    rows = [_row(recipe, [figure for figure in figures if figure["recipe"] == recipe]) for recipe in options.recipes]
    show(
        f"{options.model} on {options.task or options.data}: {extracted['examples']:,} examples in the store, "
        f"{size(extracted['bytes'])} as {options.encoding}, extracted in {extracted['seconds']:.0f} s",
        [
            "recipe",
            "dev",
            "seeds",
            "held out",
            "clean",
            "learning rate",
            "late",
            "dropout",
            "trained",
            "seconds",
            "peak memory",
        ],
        rows,
    )
    if options.json:
        options.json.write_text(json.dumps({"extract": extracted, "runs": figures}, indent=1))


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    rate: float
    late_rate: float
    dropout: float = 0.0


def _chosen_runs(recipe: str, store: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One run a seed, of the setting with the best mean held-out score."""
    found = _search_rates(recipe, store, options)
    runs: dict[float, list[dict[str, Any]]] = {}
    for dropout in options.dropouts:
        setting = replace(found, dropout=dropout)
        runs[dropout] = [_train(recipe, store, options, seed, setting, options.epochs) for seed in range(options.seeds)]
        found_here = f"held out {_held_out(runs[dropout], 'best'):.4f}, clean {_held_out(runs[dropout]):.4f}"
        print(f"{recipe} dropout {dropout:g}: {found_here}", file=sys.stderr, flush=True)
    return max(runs.values(), key=_held_out)


def _search_rates(recipe: str, store: Path, options: argparse.Namespace) -> Setting:
    """The learning rates of the best held-out score of one seed, without dropout."""
    late_rates = options.late_rates if recipe in ("last", "sherl") else options.late_rates[:1]
    grid = [Setting(rate, late_rate) for rate in options.rates for late_rate in late_rates]
    if len(grid) == 1:
        return grid[0]
    scores = {}
    for setting in grid:
        run = _train(recipe, store, options, SEARCH_SEED, setting, options.search_epochs)
        scores[setting] = run["clean"]
        rates = f"{setting.rate:g} / {setting.late_rate:g}"
        print(f"{recipe} {rates}: held out {run['best']:.4f}, clean {run['clean']:.4f}", file=sys.stderr, flush=True)
    return max(scores, key=lambda setting: scores[setting])


def _train(
    recipe: str, store: Path, options: argparse.Namespace, seed: int, setting: Setting, epochs: int
) -> dict[str, Any]:
    name = f"{recipe}-{setting.rate:g}-{setting.late_rate:g}-{setting.dropout:g}-{seed}-{epochs}"
    overrides = [
        f"train.learning_rate={setting.rate}",
        f"late.learning_rate={setting.late_rate}",
        f"dropout.features={setting.dropout}",
        f"dropout.head={setting.dropout}",
        f"dropout.late={str(setting.dropout > 0).lower()}",
        *options.overrides,
    ]
    run = sherl_cache(
        *("train", "--store", str(store), "--config", recipe, "--run", str(options.folder / "runs" / name)),
        *("--epochs", str(epochs), "--seed", str(seed)),
        *(part for override in overrides for part in ("--set", override)),
    )
    predictions = pq.read_table(Path(run["run"]) / "predictions.parquet").to_pylist()
    clean = [row for row in predictions if row["source_id"] in options.clean]
    scores = score(run["metric"], [row["prediction"] for row in clean], [row["label"] for row in clean])
    return {"seed": seed, "clean": scores[run["metric"]], **asdict(setting), **run}


def _held_out(runs: list[dict[str, Any]], which: str = "clean") -> float:
    return float(statistics.mean(run[which] for run in runs))


def clean_rows(store: Store) -> set[str]:
    """Source ids of held-out rows that are no part of a training row and hold none of three tokens or more."""
    train = [tuple(ids[1:-1]) for ids in store.examples("train").column("input_ids").to_pylist()]
    table = store.examples("validation")
    held_out = [tuple(ids[1:-1]) for ids in table.column("input_ids").to_pylist()]
    wanted = set(held_out)
    inside = {run for ids in train for run in _runs(ids) if run in wanted}
    whole = {ids for ids in train if len(ids) >= SHARED_TOKENS}
    clean = [ids not in inside and not any(run in whole for run in _runs(ids)) for ids in held_out]
    names = table.column("source_id").to_pylist()
    return {name for name, good in zip(names, clean, strict=True) if good}


def _runs(ids: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every run of neighbouring tokens."""
    return (ids[start:stop] for start in range(len(ids)) for stop in range(start + 1, len(ids) + 1))


def _row(recipe: str, runs: list[dict[str, Any]]) -> list[str]:
    values = [run["dev"]["value"] for run in runs]
    spread = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return [
        recipe,
        f"{statistics.mean(values):.4f}{spread}",
        " ".join(f"{value:.4f}" for value in values),
        f"{_held_out(runs, 'best'):.4f}",
        f"{_held_out(runs):.4f}",
        f"{runs[0]['rate']:g}",
        f"{runs[0]['late_rate']:g}" if recipe in ("last", "sherl") else "-",
        f"{runs[0]['dropout']:g}",
        f"{runs[0]['trained_parameters']:,}",
        f"{statistics.mean(run['seconds'] for run in runs):.0f}",
        size(max(run["peak_memory_bytes"] for run in runs)),
    ]


if __name__ == "__main__":
    main()
