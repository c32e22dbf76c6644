"""`sherl-cache analyze`: statistics of a store's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ._shared import emit, output_options


@click.command("analyze")
@click.option("--store", default="./cache", show_default=True, metavar="PLACE", help="The store: a folder or s3://...")
@click.option("--split", metavar="NAME", help="The split to look at.  [default: train, or the first there is]")
@click.option("--memory", default="1GiB", show_default=True, metavar="BYTES", help="Beside what imports take.")
@click.option(
    "--rows", type=click.IntRange(min=0), metavar="N", help="Rows drawn for CKA and effective rank.  [default: 8192]"
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads at most.  [default: one a core]")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Where to write.  [default: the store]")
@output_options
def command(
    store: str,
    split: str | None,
    memory: str,
    rows: int | None,
    threads: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """How large the states of each layer are, and how much the layers repeat one another.

    Mean cosine and linear CKA between taps, norms, outlier channels and effective rank, read within --memory. Written as
    Parquet and JSON into sherl/analysis/ of the store, or into --out.

    \b
    sherl-cache analyze --store ./cache
    """
    from ..upkeep import analyze

    result = analyze(store, split, memory, rows, threads, out)
    emit(result, as_json, _lines(result))


def _lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, stream in result["streams"].items():
        lines.append(
            f"{result['split']}/{name}: {stream['rows']:,} rows of {stream['width']}, "
            f"CKA and rank of {stream['sampled_rows']:,} drawn"
        )
        lines.append("  tap    norm           rank  outliers  cosine and CKA to the next  to the deepest")
        last = len(stream["taps"]) - 1
        for index, tap in enumerate(stream["taps"]):
            norm = f"{tap['norm_mean']:.4g} ± {tap['norm_std']:.2g}"
            rank = "-" if tap["effective_rank"] is None else f"{tap['effective_rank']:.1f}"
            pairs = "  ".join(_pair(stream, index, other) for other in (index + 1, last)) if index < last else ""
            lines.append(f"  h{tap['tap']:02d}  {norm:<13} {rank:>6}  {tap['outliers']:>8}  {pairs}".rstrip())
    return [*lines, f"written to {result['out']}"]


def _pair(stream: dict[str, Any], one: int, other: int) -> str:
    cka = stream["cka"][one][other]
    return f"{stream['cosine'][one][other]:>12.3f} {'-' if cka is None else f'{cka:.3f}':>6}       "
