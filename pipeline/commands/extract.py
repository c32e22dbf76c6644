"""`sherl-cache extract`: stage one."""

from __future__ import annotations

from typing import Any

import click

from ._shared import emit, extract_flags, extract_options, output_options, recipe_options


@click.command("extract")
@extract_options
@click.option("--store", default="./cache", show_default=True, metavar="FOLDER", help="Where the store goes.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Run units in N processes of this machine.")
@click.option("--scheduler", metavar="ADDRESS|FILE", help="Run units on the workers of a dask scheduler that is there.")
@click.option(
    "--cluster", metavar="NAME|FILE", help="Run units in jobs of a batch system: slurm, pbs, lsf, sge or a file."
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of a forward on each worker; the last bits depend on it.",
)
@click.option(
    "--dashboard",
    default="127.0.0.1:0",
    show_default=True,
    metavar="ADDRESS",
    help="Where dask's dashboard listens; port 0: any that is free.",
)
@click.option(
    "--time-left", metavar="TIME", help="Wall time of this job, as in 3h or 90min.  [default: what SLURM says]"
)
@click.option(
    "--part", metavar="K/N", help="Do share K of N and leave the rest to others; slurm: the share of this array task."
)
@recipe_options
@output_options
def command(
    store: str,
    workers: int | None,
    scheduler: str | None,
    cluster: str | None,
    threads: int | None,
    dashboard: str,
    time_left: str | None,
    part: str | None,
    config: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **flags: Any,
) -> None:
    """Run the frozen early layers once and store every tapped layer's activations.

    Killed at any time, the same command finishes the rest. A unit that could not be finished in the wall time that is left
    is not begun; the command then ends with 75.

    \b
    sherl-cache extract --model t5-base --data glue/sst2
    """
    from ...storage.place import local_folder
    from ..flow import extract
    from ..parts import parse_part
    from ..progress import duration, size
    from ..recipe import load_recipe
    from ..walltime import seconds_left

    where = None
    if (workers, scheduler, cluster) != (None, None, None):
        from ..cluster.extract import Workers

        where = Workers(workers, scheduler, cluster, threads, dashboard)
    seconds = None if time_left is None else seconds_left(time_left)
    share = None if part is None else parse_part(part)
    recipe = load_recipe(config, overrides, **extract_flags(flags))
    result = extract(recipe, local_folder(store), where, seconds, share)
    took = f"{duration(result['seconds'])}, peak memory {size(result['peak_memory_bytes'])}"
    if not result["complete"]:
        lines = [
            f"{result['store']}: part {result['part']} is done, {result['units_missing']:,} units are left to others; {took}",
            f"next, once they are there: sherl-cache finalize --store {result['store']}",
        ]
    else:
        lines = [
            f"{result['store']}: {result['examples']:,} examples, {result['tokens']:,} tokens, {size(result['bytes'])}",
            f"{took}, digest {result['digest'][:16]}",
            f"next: sherl-cache train --store {result['store']}{'' if result['late'] else ' --set late.blocks=0'}",
        ]
    emit(result, as_json, lines)
