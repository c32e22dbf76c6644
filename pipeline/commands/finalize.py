"""`sherl-cache finalize`: publish the manifest of a store whose units are all there."""

from __future__ import annotations

import click

from ._shared import emit, output_options


@click.command("finalize")
@click.option("--store", default="./cache", show_default=True, metavar="FOLDER", help="The store.")
@output_options
def command(store: str, as_json: bool) -> None:
    """Publish the manifest of a store that was extracted in parts; reads neither model nor data.

    The last part of an array job does the same; doing it again changes nothing.

    \b
    sherl-cache finalize --store ./cache
    """
    from ...storage.place import local_folder
    from ..upkeep import finalize

    result = finalize(local_folder(store))
    emit(result, as_json, [f"{result['store']}: {result['units']:,} units, digest {result['digest'][:16]}"])
