"""`sherl-cache train`: stage two."""

from __future__ import annotations

from pathlib import Path

import click

from ._shared import emit, output_options, recipe_options


@click.command("train")
@click.option("--store", default="./cache", show_default=True, metavar="PLACE", help="The store: a folder or s3://...")
@click.option("--run", type=click.Path(path_type=Path), help="The run's folder.  [default: ./runs/<recipe>-<hash>]")
@click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="Passes over the training split.")
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="K", help="Seed of initialisation, dropout and the order of batches."
)
@click.option(
    "--report-to", multiple=True, metavar="TRACKER", help="tensorboard, wandb, mlflow; several with commas between."
)
@click.option("--restart", is_flag=True, help="Start a fresh run beside the one that is there.")
@click.option("--device", metavar="D", help="auto, cpu, cuda, cuda:1, mps.  [default: auto]")
@recipe_options
@output_options
def command(
    store: str,
    run: Path | None,
    epochs: int | None,
    seed: int | None,
    report_to: tuple[str, ...],
    restart: bool,
    device: str | None,
    config: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train the fusion and the late layers from a store; the early backbone is not loaded.

    The same command again goes on from the newest checkpoint, or prints the result of a finished run.

    \b
    sherl-cache train --store ./cache
    torchrun --nproc-per-node 2 -m sherl_cache.pipeline train --store ./cache
    """
    from ..flow import train
    from ..launch import Launch
    from ..progress import duration, size
    from ..recipe import load_recipe

    flags = {"train.epochs": epochs, "seed": seed, "data.seed": seed, "train.device": device}
    result = train(load_recipe(config, overrides, **flags), store, run, restart=restart, report_to=report_to)
    launch = Launch.of()
    if launch is not None and launch.rank:  # rank 0 prints what all came to
        return
    best = "no validation split" if result["best"] is None else f"best {result['metric']} {result['best']:.4f}"
    emit(
        result,
        as_json,
        [
            f"{result['run']}: {result['steps']:,} steps, {best}, {result['trained_parameters']:,} trained parameters",
            f"{duration(result['seconds'])}, peak memory {size(result['peak_memory_bytes'])}",
            f"next: sherl-cache eval --run {result['run']}",
            f"  or: sherl-cache report --run {result['run']}",
        ],
    )
