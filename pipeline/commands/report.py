"""`sherl-cache report`: one page that people look at."""

from __future__ import annotations

from pathlib import Path

import click

from ._shared import emit, output_options


@click.command("report")
@click.option(
    "--run", "runs", multiple=True, type=click.Path(path_type=Path), metavar="FOLDER", help="A run; several: compared."
)
@click.option("--store", metavar="PLACE", help="The store that the run read, or a store alone.")
@click.option(
    "--bench", type=click.Path(path_type=Path), metavar="FILE", help="bench.json: live ways drawn into a comparison."
)
@click.option("--out", type=click.Path(path_type=Path), default="report.html", show_default=True, help="The file.")
@click.option(
    "--texts", is_flag=True, help="Show the texts of the examples that a run got most wrong, read from its data."
)
@output_options
def command(
    runs: tuple[Path, ...], store: str | None, bench: Path | None, out: Path, texts: bool, as_json: bool
) -> None:
    """Write a run, several side by side, or a store as one HTML page.

    The page holds all that it shows: it opens without a network, and runs no script.

    \b
    sherl-cache report --run runs/sherl-0a1b2c3d4e --store ./cache
    """
    from ..progress import size
    from ..report.write import write_report

    result = write_report(runs, store, out, texts, bench)
    emit(result, as_json, [f"{result['out']}: {size(result['bytes'])}"])
