"""`sherl-cache plan`: the bill, before the work."""

from __future__ import annotations

from typing import Any

import click

from ._shared import emit, extract_flags, extract_options, output_options, recipe_options


@click.command("plan")
@extract_options
@click.option("--store", default="./cache", show_default=True, metavar="FOLDER", help="Where the store would go.")
@click.option(
    "--unit-seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Suggest the --unit-memory of units that take about so long here.",
)
@recipe_options
@output_options
def command(
    store: str, unit_seconds: float | None, config: str | None, overrides: tuple[str, ...], as_json: bool, **flags: Any
) -> None:
    """Say what extract would cost: rows, tokens, bytes, files, minutes, memory, free space.

    \b
    sherl-cache plan --model t5-base --data glue/sst2
    """
    from ...storage.place import local_folder
    from ..flow import plan
    from ..recipe import load_recipe

    result = plan(load_recipe(config, overrides, **extract_flags(flags)), local_folder(store), unit_seconds)
    from ..plan import bill_lines

    emit(result, as_json, bill_lines(result))
