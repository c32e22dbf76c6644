"""`sherl-cache extract`: stage one."""

from __future__ import annotations

from typing import Any

import click

from ._shared import emit, extract_flags, extract_options, output_options, recipe_options


@click.command("extract")
@extract_options
@click.option("--store", default="./cache", show_default=True, metavar="FOLDER", help="Where the store goes.")
@recipe_options
@output_options
def command(store: str, config: str | None, overrides: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """Run the frozen early layers once and store every tapped layer's activations.

    Killed at any time, the same command finishes the rest.

    \b
    sherl-cache extract --model t5-base --data glue/sst2
    """
    from ...storage.place import local_folder
    from ..flow import extract
    from ..progress import duration, size
    from ..recipe import load_recipe

    result = extract(load_recipe(config, overrides, **extract_flags(flags)), local_folder(store))
    emit(
        result,
        as_json,
        [
            f"{result['store']}: {result['examples']:,} examples, {result['tokens']:,} tokens, {size(result['bytes'])}",
            f"{duration(result['seconds'])}, peak memory {size(result['peak_memory_bytes'])}, digest {result['digest'][:16]}",
            f"next: sherl-cache train --store {result['store']}{'' if result['late'] else ' --set late.blocks=0'}",
        ],
    )
