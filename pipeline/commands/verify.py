"""`sherl-cache verify`: whether a store's bytes are those that were committed."""

from __future__ import annotations

import click

from ._shared import emit, output_options


@click.command("verify")
@click.option("--store", default="./cache", show_default=True, metavar="PLACE", help="The store: a folder or s3://...")
@click.option("--deep", is_flag=True, help="Read every byte and compare its digest; without, sizes only.")
@output_options
@click.pass_context
def command(context: click.Context, store: str, deep: bool, as_json: bool) -> None:
    """Check a store: exit code 0 whole, 4 incomplete, 5 damaged.

    \b
    sherl-cache verify --store ./cache --deep
    """
    from ..upkeep import verify

    result = verify(store, deep)
    lines = [f"{item['path']}: {item['problem']}" for item in result["findings"]]
    checked = "every byte" if deep else "sizes"
    verdict = {0: f"whole ({checked} checked)", 4: "incomplete: run extract again", 5: "damaged"}[result["exit_code"]]
    emit(result, as_json, [*lines, f"{result['store']}: {verdict}"])
    context.exit(result["exit_code"])
