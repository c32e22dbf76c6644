"""`sherl-cache export`: a finished run as a folder of its own."""

from __future__ import annotations

from pathlib import Path

import click

from ._shared import emit, output_options


@click.command("export")
@click.option("--run", required=True, type=click.Path(path_type=Path), help="A finished run's folder.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder that the export goes into.")
@click.option(
    "--base-model", metavar="NAME|FOLDER", help="Name to write down for the pretrained model.  [default: as trained]"
)
@output_options
def command(run: Path, out: Path, base_model: str | None, as_json: bool) -> None:
    """Write what a run trained, with a model card, as a folder that loads without the run and its store.

    \b
    sherl-cache export --run ./runs/sherl-0123456789 --out ./exported
    """
    from ..flow import export
    from ..progress import size

    result = export(run, out, base_model)
    emit(
        result,
        as_json,
        [
            f"{result['out']}: {result['parameters']:,} parameters, {size(result['bytes'])}, over {result['base']}",
            f'next: sherl-cache predict --run {result["out"]} "a text"',
        ],
    )
