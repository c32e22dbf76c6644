"""`sherl-cache methods`: the plug-ins there are, and what each takes."""

from __future__ import annotations

import click

from ._shared import emit, output_options


@click.command("methods")
@click.argument("name", required=False)
@output_options
def command(name: str | None, as_json: bool) -> None:
    """List fusions, tuners, heads and objectives, or show one with its options.

    \b
    sherl-cache methods sherl
    """
    from ..flow import methods

    result = methods(name)
    lines = []
    for method in result["methods"]:
        lines.append(f"{method['axis']} {method['name']}: {method['summary']}")
        if name is not None:
            lines += [f"  {method['source']}"] if method["source"] else []
            lines += [f"  {key} = {option['default']!r}: {option['help']}" for key, option in method["options"].items()]
    emit(result, as_json, lines)
