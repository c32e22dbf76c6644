"""`sherl-cache explain-stale`: why a store does not fit what is asked for."""

from __future__ import annotations

from typing import Any

import click

from ._shared import emit, extract_flags, extract_options, output_options, recipe_options


@click.command("explain-stale")
@extract_options
@click.option("--store", default="./cache", show_default=True, metavar="FOLDER", help="The store.")
@click.option("--all", "every", is_flag=True, help="Show fields that are equal, too.")
@recipe_options
@output_options
@click.pass_context
def command(
    context: click.Context,
    /,
    store: str,
    every: bool,
    config: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **flags: Any,
) -> None:
    """Say field by field what a store was made from and what is asked for: exit code 0 it fits or grows, 4 stale.

    \b
    sherl-cache explain-stale --store ./cache --model t5-base --data glue/sst2 --max-length 256
    """
    from ...storage.place import local_folder
    from ..recipe import load_recipe
    from ..upkeep import explain_stale

    result = explain_stale(load_recipe(config, overrides, **extract_flags(flags)), local_folder(store, "compared"))
    told = {"numbers": "changes the numbers", "layout": "changes their places and order", "recorded": "noted only"}
    lines = [
        f"{'! ' if item['refused'] else '  '}{item['field']}: {item['stored']} in the store, {item['asked']} asked for "
        f"({told[item['meaning']]})"
        for item in result["fields"]
        if every or item["differs"]
    ]
    verdict = {
        "same": "the store holds what is asked for",
        "grows": "extract would add what is missing",
        "stale": "another store: extract it into another folder",
    }[result["verdict"]]
    emit(result, as_json, [*lines, *result["differences"], f"{store}: {verdict}"])
    context.exit(result["exit_code"])
