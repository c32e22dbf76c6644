"""Every fusion and every tuner on one task, trained side by side from one read of one store.

    python -m benchmarks.methods --data path/to/glue/SST-2 --task sst2 --limit 2000 --epochs 4

Every fusion trains with the last block behind it, where blocks can follow, and every tuner on that block alone behind
the fusion `last`. The protocol is that of `benchmarks.accuracy`: 1,000 training rows are held out, learning rate and dropout
are chosen on those of them that share no text with a training row, the best epoch on all of them, and the dev set is
scored once for the chosen run. The grid, the same for all, is printed; with `--search-epochs` its points are compared by
runs of other seeds, otherwise by the runs themselves. `--blocks` makes the number of late blocks that train a part of
the grid, for recipes that train any. Seconds an epoch and peak memory are those of a lone run of one epoch, in a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import yaml

from sherl_cache.pipeline.progress import size
from sherl_cache.pipeline.recipe import Recipe
from sherl_cache.stages.metrics import score
from sherl_cache.stages.plugins import find, names
from sherl_cache.storage import Store

from .accuracy import HELD_OUT, SEARCH_SEED, clean_rows
from .commands import sherl_cache, show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin/minilm")
    parser.add_argument("--data", required=True)
    parser.add_argument("--task")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--search-epochs", type=int, help="of runs that only choose a point of the grid")
    parser.add_argument("--search-seeds", type=int, default=1, help="of those runs, from 100 on")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0, help="of the seeds that are reported")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument(
        "--dropouts", type=float, nargs="+", default=[0.0], help="of taps and head; above 0 the late blocks drop too"
    )
    parser.add_argument("--blocks", type=int, nargs="+", help="late blocks that train; default: what the recipe says")
    parser.add_argument("--late", type=int, help="late blocks whose weights the store holds; vqt calls all of them")
    parser.add_argument("--only", nargs="*", help="names of recipes, as the table has them")
    parser.add_argument("--side-by-side", type=int, default=12, help="runs of one sweep; more take more memory")
    parser.add_argument("--folder", type=Path, default=Path("methods"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    task = ("--task", options.task) if options.task else ()
    limit = ("--limit", str(options.limit)) if options.limit else ()
    late = ("--late", str(options.late)) if options.late else ()
    store = options.folder / "cache"
    sherl_cache(
        *("extract", "--model", options.model, "--data", options.data, *task, *limit, *late),
        *("--splits", f"holdout:{options.held_out}", "--store", str(store)),
    )
    clean = clean_rows(Store.open(store)) if options.task else None
    wanted = recipes() if options.only is None else {name: recipes()[name] for name in options.only}
    blocks = f" x blocks {options.blocks}" if options.blocks else ""
    print(
        f"{len(wanted)} recipes x rates {options.rates} x dropouts {options.dropouts}{blocks} x {options.seeds} seed(s) "
        f"from {options.first_seed} on, {options.epochs} epochs, batch 32"
    )
    points = {name: grid(recipe, options) for name, recipe in wanted.items()}
    if options.search_epochs:
        seeds = range(SEARCH_SEED, SEARCH_SEED + options.search_seeds)
        print(f"grid: runs of {options.search_epochs} epochs, seeds {seeds.start} to {seeds.stop - 1}", flush=True)
        found = swept(wanted, points, store, options, seeds, options.search_epochs)
        points = {name: [best(found[name], clean)] for name in wanted}
        for name, by_setting in found.items():
            scores = {str(setting): f"{_mean_clean(runs, clean):.4f}" for setting, runs in by_setting.items()}
            print(f"{name}, clean held-out rows: {scores}", file=sys.stderr, flush=True)
    first = options.first_seed
    runs = swept(wanted, points, store, options, range(first, first + options.seeds), options.epochs)
    figures = []
    for name, by_setting in runs.items():
        setting = best(by_setting, clean)
        chosen = by_setting[setting]
        dev = [sherl_cache("eval", "--run", run["run"], "--split", "test") for run in chosen]
        cost = sherl_cache(
            *("train", "--store", str(store), "--config", str(setting.file(options.folder, name)), "--epochs", "1"),
            *("--run", str(options.folder / "cost" / name)),
        )
        figures.append(
            {
                "recipe": name,
                "rate": setting.rate,
                "dropout": setting.dropout,
                "blocks": setting.blocks,
                "dev": [item["value"] for item in dev],
                "held_out": statistics.mean(run["best"] for run in chosen),
                "clean": _mean_clean(chosen, clean),
                "trained_parameters": cost["trained_parameters"],
                "seconds_an_epoch": cost["seconds"],
                "peak_memory_bytes": cost["peak_memory_bytes"],
            }
        )
        print(f"{name}: dev {figures[-1]['dev']}", file=sys.stderr, flush=True)
    figures.sort(key=lambda figure: -statistics.mean(figure["dev"]))
    show(
        f"{options.model} on {options.task or options.data}, {options.limit or 'all'} training rows",
        ["recipe", "dev", "held out", "rate", "dropout", "blocks", "trained", "s/epoch", "peak memory"],
        [_row(figure) for figure in figures],
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def recipes() -> dict[str, dict[str, Any]]:
    """The shipped probe; every fusion, with a trained block behind it where one can follow; every tuner behind `last`."""
    found: dict[str, dict[str, Any]] = {"probe": {"fusion": {"name": "last"}, "late": {"blocks": 0}}}
    for name in names("fusion"):
        method: Any = find("fusion", name)
        found[name] = {"fusion": {"name": name}, "late": {"blocks": int(method.enters_late)}}
    found["sherl-paper"] = {"fusion": {"name": "sherl"}, "late": {"mode": "frozen"}}
    found["sherl, 3 blocks"] = {"fusion": {"name": "sherl"}, "late": {"blocks": 3}}
    for name in names("tuner"):
        found[f"last + {name}"] = {"fusion": {"name": "last"}, "tuner": {"name": name}}
    found["sherl + lora"] = {"fusion": {"name": "sherl"}, "tuner": {"name": "lora"}}
    return found


@dataclass(frozen=True)
class Setting:
    """A point of the grid."""

    rate: float
    dropout: float
    blocks: int | None = None

    def __str__(self) -> str:
        return f"{self.rate:g}-{self.dropout:g}" + (f"-{self.blocks}blocks" if self.blocks else "")

    def file(self, folder: Path, name: str) -> Path:
        """Where the recipe of that name with this setting is."""
        stem = "".join(letter if letter.isalnum() else "-" for letter in name)
        return folder / "recipes" / f"{stem}-{self}.yaml"

    def write(self, folder: Path, name: str, recipe: Mapping[str, Any]) -> Path:
        """A recipe with this setting, as a file."""
        drop = {"dropout": {"features": self.dropout, "head": self.dropout, "late": True}} if self.dropout else {}
        late = {"late": {**recipe.get("late", {}), "blocks": self.blocks}} if self.blocks else {}
        file = self.file(folder, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        settings = {"name": file.stem, **recipe, **late, **drop, "train": {"learning_rate": self.rate}}
        file.write_text(yaml.safe_dump(settings))
        return file


def grid(recipe: Mapping[str, Any], options: argparse.Namespace) -> list[Setting]:
    """Every point of the grid for one recipe; only where late blocks train does their number belong to it."""
    read = Recipe.model_validate(recipe)
    trains_blocks = read.late.blocks > 0 and read.late_mode == "full"
    blocks = options.blocks if options.blocks and trains_blocks else [None]
    return [Setting(rate, drop, count) for rate in options.rates for drop in options.dropouts for count in blocks]


Runs = dict[Setting, list[dict[str, Any]]]


def swept(
    wanted: Mapping[str, dict[str, Any]],
    points: Mapping[str, list[Setting]],
    store: Path,
    options: argparse.Namespace,
    seeds: Sequence[int],
    epochs: int,
) -> dict[str, Runs]:
    """Runs of every recipe by setting, one a seed."""
    files = {
        str(setting.write(options.folder, name, wanted[name])): (name, setting)
        for name, settings in points.items()
        for setting in settings
    }
    share = max(options.side_by_side // len(seeds), 1)
    found: dict[str, Runs] = {name: {setting: [] for setting in settings} for name, settings in points.items()}
    for first in range(0, len(files), share):
        table = sherl_cache(
            *("sweep", *list(files)[first : first + share], "--store", str(store)),
            *("--runs", str(options.folder / "runs"), "--seeds", ",".join(map(str, seeds)), "--epochs", str(epochs)),
        )
        for run in table["runs"]:
            if run["error"]:
                raise SystemExit(f"{run['recipe']}: {run['error']}")
            name, setting = files[run["recipe"]]
            found[name][setting].append(run)
    return found


def best(runs: Runs, clean: set[str] | None) -> Setting:
    """The setting with the best mean score on held-out rows that share no text with a training row."""
    return max(runs, key=lambda setting: _mean_clean(runs[setting], clean))


def _mean_clean(runs: Sequence[Mapping[str, Any]], clean: set[str] | None) -> float:
    return statistics.mean(_clean(run, clean) for run in runs)


def _clean(run: Mapping[str, Any], clean: set[str] | None) -> float:
    """Score on the held-out rows that share no text with a training row."""
    rows = pq.read_table(Path(run["run"]) / "predictions.parquet").to_pylist()
    rows = [row for row in rows if clean is None or row["source_id"] in clean]
    scores = score(run["metric"], [row["prediction"] for row in rows], [row["label"] for row in rows])
    return scores[run["metric"]]


def _row(figure: Mapping[str, Any]) -> list[str]:
    dev = figure["dev"]
    spread = f" +- {statistics.stdev(dev):.4f}" if len(dev) > 1 else ""
    return [
        figure["recipe"],
        f"{statistics.mean(dev):.4f}{spread}",
        f"{figure['held_out']:.4f}",
        f"{figure['rate']:g}",
        f"{figure['dropout']:g}",
        str(figure["blocks"] or "-"),
        f"{figure['trained_parameters']:,}",
        f"{figure['seconds_an_epoch']:.1f}",
        size(figure["peak_memory_bytes"]),
    ]


if __name__ == "__main__":
    main()
