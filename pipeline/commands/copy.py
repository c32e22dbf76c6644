"""`sherl-cache copy`: a store into another folder."""

from __future__ import annotations

import click

from ._shared import emit, output_options


@click.command("copy")
@click.option("--store", default="./cache", show_default=True, metavar="PLACE", help="The store: a folder or s3://...")
@click.option("--to", required=True, metavar="FOLDER", help="Where the copy goes: a node's own disk, or a shared one.")
@output_options
def command(store: str, to: str, as_json: bool) -> None:
    """Copy a finished store into a folder, every byte checked; the manifest comes last.

    Killed at any time, the same command copies the rest. A store that has grown is copied into its older copy.

    \b
    sherl-cache copy --store ./cache --to $TMPDIR/cache
    """
    from ..progress import duration, size
    from ..upkeep import copy

    result = copy(store, to)
    emit(
        result,
        as_json,
        [
            f"{result['to']}: {size(result['bytes'])} copied in {duration(result['seconds'])}, digest {result['digest'][:16]}",
            f"next: sherl-cache train --store {result['to']}",
        ],
    )
