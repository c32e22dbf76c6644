"""`sherl-cache fetch`: model and data onto this machine."""

from __future__ import annotations

import click

from ._shared import emit, output_options, recipe_options


@click.command("fetch")
@click.option("--model", metavar="NAME", help="Model on the hub.")
@click.option("--revision", metavar="R", help="Branch, tag or commit of the model.")
@click.option("--data", metavar="NAME", help="Data: glue/sst2 or another name on the hub.")
@recipe_options
@output_options
def command(
    model: str | None,
    revision: str | None,
    data: str | None,
    config: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Download a model and data, on a machine that has a network.

    Afterwards everything runs without one, with HF_HUB_OFFLINE=1. Nodes find it where HF_HOME says, which is a folder
    that they see.

    \b
    sherl-cache fetch --model t5-base --data glue/sst2
    """
    from ..fetching import fetch
    from ..progress import size
    from ..recipe import load_recipe

    flags = {"extract.model": model, "extract.revision": revision, "extract.data": data}
    result = fetch(load_recipe(config, overrides, **flags))
    lines = []
    if (there := result["model"]) is not None:
        at = f" at {there['revision']}" if there["revision"] else ""
        lines.append(f"{there['name']}{at}: {size(there['bytes'])} of weights in {there['folder']}")
    if (there := result["data"]) is not None:
        rows = ", ".join(f"{name} {count:,}" for name, count in there["rows"].items())
        lines.append(f"{there['name']}: rows of {rows}")
    emit(result, as_json, [*lines, f"HF_HOME is {result['cache']}; next, on any node: export HF_HUB_OFFLINE=1"])
