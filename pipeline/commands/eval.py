"""`sherl-cache eval`: the live model on raw text."""

from __future__ import annotations

from pathlib import Path

import click

from ._shared import emit, output_options


@click.command("eval")
@click.option("--run", required=True, type=click.Path(path_type=Path), help="A finished run's folder.")
@click.option("--data", metavar="NAME|FILE|FOLDER", help="Other data than the run's own.")
@click.option("--split", metavar="SPLIT", help="Split to score.  [default: validation]")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="First N rows.")
@click.option(
    "--batch-examples", type=click.IntRange(min=1), default=32, show_default=True, metavar="N", help="Rows a batch."
)
@click.option(
    "--num-beams", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Beams of generation."
)
@click.option("--device", default="auto", show_default=True, metavar="D", help="auto, cpu, cuda, cuda:1, mps.")
@output_options
def command(
    run: Path,
    data: str | None,
    split: str | None,
    limit: int | None,
    batch_examples: int,
    num_beams: int,
    device: str,
    as_json: bool,
) -> None:
    """Score a run on raw text with the live model; an encoder-decoder answers by generation.

    \b
    sherl-cache eval --run ./runs/sherl-0123456789
    """
    from ..flow import evaluate

    result = evaluate(run, data, split, limit, batch_examples, num_beams, device)
    emit(result, as_json)
