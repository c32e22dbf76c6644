"""`sherl-cache info`: what a store holds."""

from __future__ import annotations

import click

from ._shared import emit, output_options


@click.command("info")
@click.option("--store", default="./cache", show_default=True, metavar="PLACE", help="The store: a folder or s3://...")
@output_options
def command(store: str, as_json: bool) -> None:
    """Say what a store holds, and whether it is complete.

    \b
    sherl-cache info --store ./cache
    """
    from ..flow import info

    emit(info(store), as_json)
