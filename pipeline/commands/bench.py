"""`sherl-cache bench`: stage two beside live training, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ._shared import emit, extract_flags, extract_options, output_options, recipe_options


@click.command("bench")
@click.option("--store", metavar="PLACE", help="A store that is there.  [default: ./cache]")
@extract_options
@click.option(
    "--ways",
    default="stage-two,live,lora,full",
    show_default=True,
    metavar="A,B",
    help="What is measured, in this order.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    default=8,
    show_default=True,
    metavar="N",
    help="Training steps a round; the first is not timed.",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True, metavar="N", help="Of all ways in turn."
)
@click.option(
    "--batch-examples", type=click.IntRange(min=1), metavar="N", help="Examples a batch.  [default: the recipe's]"
)
@click.option(
    "--lora-rank",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="R",
    help="Rank of the LoRA that is live.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default="bench",
    show_default=True,
    help="Folder of bench.json, bench.html, and of the small store.",
)
@recipe_options
@output_options
@click.pass_context
def command(
    context: click.Context,
    /,
    store: str | None,
    ways: str,
    steps: int,
    rounds: int,
    batch_examples: int | None,
    lora_rank: int,
    output: Path,
    config: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **flags: Any,
) -> None:
    """Measure seconds and peak memory of a training step: stage two, the same recipe live, LoRA and full fine-tuning.

    Each way runs in a process of its own; one that fails, or runs out of memory, is a line that says so. With --model and
    --data, and the other options of extract, a store of a few hundred rows is made in --output first. LoRA needs
    `pip install 'sherl-cache[bench]'`.

    \b
    sherl-cache bench --store ./cache
    sherl-cache bench --model t5-base --data glue/sst2
    """
    from ..bench.picture import WAY_COLUMNS, extraction_lines, way_rows
    from ..bench.run import bench
    from ..bench.subject import choose_store, chosen_ways
    from ..recipe import load_recipe

    named = {"data.batch_examples": batch_examples, **extract_flags(flags)}
    recipe = load_recipe(config, overrides, **named)
    chosen = chosen_ways(ways)
    asked = [name for name, value in flags.items() if value not in (None, ()) and name != "device"]
    root = choose_store(recipe, store, asked, steps, output)
    found = bench(recipe, root, chosen, steps, rounds, lora_rank, output)
    result = {**found.model_dump(), "output": str(output), "exit_code": found.exit_code}
    lines = [f"{name}: {value}" for name, value in found.settings.items() if value is not None]
    lines += ["", *_table([list(WAY_COLUMNS), *way_rows(found)]), "", *extraction_lines(found)]
    emit(result, as_json, [*lines, f"written to {output / 'bench.json'} and {output / 'bench.html'}"])
    context.exit(found.exit_code)


def _table(rows: list[list[str]]) -> list[str]:
    """Columns under one another, the first to the left; a row that says why there are no numbers goes on to the end."""
    whole = [row for row in rows if row[-1]]
    widths = [max(len(row[column]) for row in whole) for column in range(len(rows[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = []
    for row in rows:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)] if row[-1] else [row[1]]
        lines.append("  ".join([first, *rest]))
    return lines
