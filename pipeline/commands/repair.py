"""`sherl-cache repair`: make damaged parts of a store again."""

from __future__ import annotations

import click

from ._shared import emit, output_options


@click.command("repair")
@click.option("--store", default="./cache", show_default=True, metavar="FOLDER", help="The store.")
@click.option("--model", metavar="NAME|FOLDER", help="Where the model is now, if it was moved.")
@click.option("--data", metavar="NAME|FILE|FOLDER", help="Where the data is now, if it was moved.")
@click.option("--validation", metavar="FILE", help="Where the file of validation rows is now, if it was moved.")
@click.option("--device", default="auto", show_default=True, metavar="D", help="auto, cpu, cuda, cuda:1, mps.")
@output_options
@click.pass_context
def command(
    context: click.Context,
    store: str,
    model: str | None,
    data: str | None,
    validation: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Read every byte of a store, and make again exactly what is damaged, from the model and the data.

    Damaged files are moved aside; nothing that is whole is touched. Exit code 0: whole again.

    \b
    sherl-cache repair --store ./cache
    """
    from ...storage.place import local_folder
    from ..upkeep import repair

    moved = {"model": model, "data": data, "validation": validation}
    result = repair(
        local_folder(store, "repaired"), {name: value for name, value in moved.items() if value is not None}, device
    )
    lines = [f"made again: {path}" for path in result["files"]]
    lines += [f"left: {item['path']}: {item['problem']}" for item in result["left"]]
    if result["changed"]:
        lines.append(f"other values than before in {', '.join(result['changed'])}: this machine computes otherwise")
    verdict = {0: "whole", 4: "incomplete: run extract again", 5: "damaged"}[result["exit_code"]]
    emit(result, as_json, [*lines, f"{store}: {verdict}, {result['findings']} findings before"])
    context.exit(result["exit_code"])
