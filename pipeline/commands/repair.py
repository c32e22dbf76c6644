"""`sherl-cache repair`: make damaged parts of a store again."""

from __future__ import annotations

from typing import Any

import click

from ._shared import emit, extract_flags, extract_options, output_options, recipe_options


@click.command("repair")
@extract_options
@click.option("--store", default="./cache", show_default=True, metavar="FOLDER", help="The store.")
@recipe_options
@output_options
@click.pass_context
def command(
    context: click.Context,
    /,
    store: str,
    config: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **flags: Any,
) -> None:
    """Read every byte of a store, and make again exactly what is damaged, from the model and the data.

    Damaged files are moved aside; nothing that is whole is touched. The store knows what it was made from: give --model,
    --data and --validation where these were moved. Only a damaged plan asks for the options of the extract that made
    it. Exit code 0: whole again.

    \b
    sherl-cache repair --store ./cache
    """
    from ...storage.place import local_folder
    from ..recipe import load_recipe
    from ..upkeep import repair

    recipe = load_recipe(config, overrides, **extract_flags(flags))
    given = {name: getattr(recipe.extract, name) for name in recipe.extract.model_fields_set}
    result = repair(local_folder(store, "repaired"), given, recipe.train.device)
    lines = [f"made again: {path}" for path in result["files"]]
    lines += [f"left: {item['path']}: {item['problem']}" for item in result["left"]]
    if result["changed"]:
        lines.append(f"other values than before in {', '.join(result['changed'])}: this machine computes otherwise")
    verdict = {0: "whole", 4: "incomplete: run extract again", 5: "damaged"}[result["exit_code"]]
    damages = "1 finding" if result["findings"] == 1 else f"{result['findings']:,} findings"
    emit(result, as_json, [*lines, f"{store}: {verdict}, {damages} before"])
    context.exit(result["exit_code"])
