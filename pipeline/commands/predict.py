"""`sherl-cache predict`: answers for texts or pictures from the command line, a file or standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from ...storage.printable import printable_json
from ._shared import echo, output_options, say


@click.command("predict")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--run", required=True, type=click.Path(path_type=Path), help="A finished run's folder.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="File of rows (csv, tsv, json, parquet), or folder of pictures; labels are not needed.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write the answers there as JSON lines instead of printing them."
)
@click.option(
    "--batch-examples", type=click.IntRange(min=1), default=32, show_default=True, metavar="N", help="Rows a batch."
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of a run on pictures with captions: the likest of each query.  [default: 5]",
)
@click.option(
    "--vectors",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Of such a run: write the vectors of all pictures and texts there, as safetensors.",
)
@click.option("--device", default="auto", show_default=True, metavar="D", help="auto, cpu, cuda, cuda:1, mps.")
@output_options
def command(
    texts: tuple[str, ...],
    run: Path,
    data: Path | None,
    out: Path | None,
    batch_examples: int,
    top: int | None,
    vectors: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Answer texts with a trained run. Without TEXT and --data, one text a line is read from standard input.

    A task of two texts takes them with a tab between. A run on pictures takes the path of a picture for a text. A run on
    pictures with captions takes both: each text is ranked among all pictures, those of --data too, and each picture among
    all texts; without TEXT, all of --data.

    \b
    sherl-cache predict --run ./runs/sherl-0123456789 "a gripping film"
    """
    from ..flow import predict

    lines = texts or (() if data is not None else tuple(line.rstrip("\n") for line in sys.stdin if line.strip()))
    answers = predict(run, lines, data, batch_examples, device, top, vectors)
    if out is not None:
        from ...storage import commit

        commit.replace(out, "".join(_json(answer) + "\n" for answer in answers).encode())
        say(f"{out}: {len(answers):,} answers")
        return
    if as_json:
        click.echo(_json(answers, indent=1))
        return
    for answer in answers:
        if "nearest" in answer:
            echo(answer["query"])
            for found in answer["nearest"]:
                echo(f"  {found['similarity']:.3f}  {found['item']}")
            continue
        score = "" if answer["score"] is None else f"  ({answer['score']:.3f})"
        echo(f"{answer['label']}{score}  {answer['text']}")


def _json(value: Any, indent: int | None = None) -> str:
    """Readable in every script, and safe to print."""
    return printable_json(json.dumps(value, indent=indent, ensure_ascii=False))
