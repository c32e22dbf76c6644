"""`sherl-cache gc`: what lies in a store and nothing names any more."""

from __future__ import annotations

import click

from ._shared import emit, output_options


@click.command("gc")
@click.option("--store", default="./cache", show_default=True, metavar="FOLDER", help="The store.")
@click.option("--yes", is_flag=True, help="Remove it; without, it is only shown.")
@output_options
def command(store: str, yes: bool, as_json: bool) -> None:
    """Show, or remove, temporary files, orphans and superseded manifests of a store.

    Whatever the store needs, finished or growing, is kept, and so is what belongs to a writer at work.

    \b
    sherl-cache gc --store ./cache --yes
    """
    from ...storage.place import local_folder
    from ..progress import size
    from ..upkeep import gc

    result = gc(local_folder(store, "cleaned"), yes)
    lines = [f"{item['path']}: {item['reason']}, {size(item['bytes'])}" for item in result["files"]]
    done = "removed" if yes else "can be removed with --yes"
    count = "1 file" if len(lines) == 1 else f"{len(lines):,} files"
    emit(result, as_json, [*lines, f"{store}: {count}, {size(result['bytes'])} {done}"])
