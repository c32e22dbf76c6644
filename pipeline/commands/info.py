"""`sherl-cache info`: what a store holds."""

from __future__ import annotations

from pathlib import Path

import click

from ._shared import emit, output_options


@click.command("info")
@click.option("--store", default="./cache", show_default=True, type=click.Path(path_type=Path), help="The store.")
@output_options
def command(store: Path, as_json: bool) -> None:
    """Say what a store holds, and whether it is complete.

    \b
    sherl-cache info --store ./cache
    """
    from ..flow import info

    emit(info(store), as_json)
