"""`sherl-cache info`: what a store holds."""

from __future__ import annotations

import click

from ._shared import emit, facts, output_options


@click.command("info")
@click.option("--store", default="./cache", show_default=True, metavar="PLACE", help="The store: a folder or s3://...")
@click.option("--watch", "watching", is_flag=True, help="Until it is complete, show how far it is and who is at work.")
@output_options
def command(store: str, watching: bool, as_json: bool) -> None:
    """Say what a store holds, and whether it is complete.

    \b
    sherl-cache info --store ./cache
    """
    from ..flow import info
    from ..monitor import watch

    if watching:
        watch(store)
    result = info(store)
    units, at_work = result["units"], [f"{w['unit']} on {w['host']}:{w['pid']}" for w in result["at_work"]]
    shown = {
        **result,
        "units": f"{units['done']:,} of {units['all']:,}",
        "at_work": "; ".join(at_work) or "nobody",
    }
    emit(result, as_json, facts(shown))
