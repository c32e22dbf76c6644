"""`sherl-cache methods`: the plug-ins there are, and what each takes."""

from __future__ import annotations

import click

from ._shared import emit, output_options


@click.command("methods")
@click.argument("name", required=False)
@output_options
def command(name: str | None, as_json: bool) -> None:
    """List fusions, tuners, heads and objectives, or show one: its paper, what it reads and trains, its options.

    In formulas K is the number of taps that are read, D the width, F that of the feed-forward, C the number of classes.

    \b
    sherl-cache methods sherl
    """
    from ..flow import methods
    from ..method_pages import list_lines, page_lines

    result = methods(name)
    if name is None:
        lines = list_lines(result["methods"])
    else:
        pages = [page_lines(method) for method in result["methods"]]
        lines = [line for number, page in enumerate(pages) for line in (["", *page] if number else page)]
    emit(result, as_json, lines)
