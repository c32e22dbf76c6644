"""`sherl-cache advise`: whether caching pays here."""

from __future__ import annotations

from typing import Any

import click

from ._shared import emit, extract_flags, extract_options, output_options, recipe_options


@click.command("advise")
@extract_options
@click.option("--store", default="./cache", show_default=True, metavar="FOLDER", help="Where the store would go.")
@click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="Epochs of a run.  [default: the recipe's]")
@click.option(
    "--runs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Runs over the same store."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=15.0,
    show_default=True,
    metavar="N",
    help="How long to measure, about; a few steps at least.",
)
@recipe_options
@output_options
def command(
    store: str,
    epochs: int | None,
    runs: int,
    seconds: float,
    config: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **flags: Any,
) -> None:
    """Measure for some seconds whether caching pays here, and with which taps and encoding.

    Compares a store with live training of the same recipe: the early layers run in every step, without gradients. Times
    forwards, training steps, encodings and the disk on real rows of the data, and writes nothing where the store would go.

    \b
    sherl-cache advise --model t5-base --data glue/sst2 --epochs 10 --runs 3
    """
    from ...storage.place import local_folder
    from ..flow import advise
    from ..recipe import load_recipe

    recipe = load_recipe(config, overrides, **extract_flags(flags))
    result = advise(recipe, local_folder(store), epochs, runs, seconds)
    from ..advice.lines import advice_lines

    emit(result, as_json, advice_lines(result))
