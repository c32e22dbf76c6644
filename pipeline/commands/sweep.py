"""`sherl-cache sweep`: several runs of stage two from one read of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ._shared import emit, output_options


@click.command("sweep")
@click.argument("configs", nargs=-1, metavar="[NAME|FILE]...")
@click.option("--store", default="./cache", show_default=True, metavar="PLACE", help="The store: a folder or s3://...")
@click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    default="runs",
    show_default=True,
    help="Where the folders of the runs are, and the table of the sweep beside them.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key in all of them.")
@click.option("--grid", multiple=True, metavar="KEY=V1,V2", help="A run for each value; repeat for combinations.")
@click.option(
    "--seeds", metavar="0,1,2", help="A run for each seed of initialisation and dropout, in one order of data."
)
@click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="Passes over the training split.")
@click.option(
    "--report-to",
    multiple=True,
    metavar="TRACKER",
    help="Tell each run to tensorboard, wandb, mlflow; several with commas.",
)
@click.option("--device", metavar="D", help="auto, cpu, cuda, cuda:1, mps.  [default: auto]")
@output_options
def command(
    configs: tuple[str, ...],
    store: str,
    runs: Path,
    overrides: tuple[str, ...],
    grid: tuple[str, ...],
    seeds: str | None,
    epochs: int | None,
    report_to: tuple[str, ...],
    device: str | None,
    as_json: bool,
) -> None:
    """Train several recipes side by side from one read of a store, each equal to its lone run.

    Recipes share a read when they agree in data.seed, data.batch_examples, data.batch_tokens, data.window, train.epochs
    and train.device. The same command again goes on with what is not finished.

    \b
    sherl-cache sweep sherl sherl-paper --seeds 0,1,2 --grid train.learning_rate=1e-3,3e-3
    """
    from ..flow import sweep
    from ..grid import variants
    from ..progress import duration, size

    flags = {"train.epochs": epochs, "train.device": device}
    table = sweep(variants(configs, overrides, seeds, grid, **flags), store, runs, report_to)
    emit(
        table,
        as_json,
        [
            *_lines(table["runs"]),
            f"{duration(table['seconds'])}, waited {table['waited_seconds']:.1f} s for reading {size(table['read_bytes'])}, "
            f"peak memory {size(table['peak_memory_bytes'])}",
            f"table: {table['sweep']}",
        ],
    )
    if any(row["error"] for row in table["runs"]):
        click.get_current_context().exit(3)


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    """A table for people, the best run first."""
    from ..progress import duration

    def place(row: dict[str, Any]) -> float:
        return float("inf") if row["best"] is None else row["best"] if row["metric"] == "loss" else -row["best"]

    heads = ("recipe", "score", "trained", "compute", "run")
    cells = [heads]
    for row in sorted(rows, key=place):
        said = " ".join([row["recipe"], *(f"{key}={value}" for key, value in row["changed"].items())])
        score = "stopped" if row["error"] else "none" if row["best"] is None else f"{row['metric']} {row['best']:.4f}"
        trained = "" if row["trained_parameters"] is None else f"{row['trained_parameters']:,}"
        cells.append((said, score, trained, duration(row["seconds"] or 0), row["run"]))
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    return ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in cells]
