"""`sherl-cache sbatch`: a run as batch jobs of SLURM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ._shared import emit, extract_flags, extract_options, output_options


@click.command("sbatch")
@click.argument("recipe", required=False, metavar="[NAME|FILE]")
@click.option("--cluster", default="slurm", show_default=True, metavar="NAME|FILE", help="The cluster file.")
@click.option("--store", default="./cache", show_default=True, metavar="FOLDER", help="Where the store goes.")
@click.option("--run", type=click.Path(path_type=Path), help="The run's folder.  [default: ./runs/<recipe>-<hash>]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("jobs"),
    show_default=True,
    help="Where scripts and logs go.",
)
@click.option(
    "--parts", type=click.IntRange(min=1), metavar="N", help="Tasks of the array.  [default: the cluster's max_jobs]"
)
@click.option("--submit", "submitting", is_flag=True, help="Submit them too, which submit.sh does.")
@extract_options
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key: --set train.epochs=3.")
@output_options
def command(
    recipe: str | None,
    cluster: str,
    store: str,
    run: Path | None,
    out: Path,
    parts: int | None,
    submitting: bool,
    overrides: tuple[str, ...],
    as_json: bool,
    **flags: Any,
) -> None:
    """Write batch scripts for SLURM: an array job that extracts, and training after it.

    Jobs are told to stop before their time is over, save, and are queued again; a cluster file says what they may ask for.

    \b
    sherl-cache sbatch recipe.yaml --cluster my-cluster.yaml
    """
    from ..cluster.jobs import submit, write_jobs
    from ..cluster.settings import load_cluster
    from ..recipe import load_recipe

    asked = load_recipe(recipe, overrides, **extract_flags(flags))
    result = write_jobs(asked, load_cluster(cluster), store, out, run, parts)
    if submitting:
        result["submitted"] = submit(Path(result["folder"]))
    folder = result["folder"]
    lines = [f"{folder}: {', '.join(result['scripts'])}; {result['parts']} parts into {result['store']}"]
    if result["submitted"] is None:
        lines.append(f"next: sherl-cache fetch --config {folder}/recipe.yaml, then bash {folder}/submit.sh")
    else:
        lines += [f"submitted {name} as job {number}" for name, number in result["submitted"].items()]
        lines.append(f"next: sherl-cache info --watch --store {result['store']}")
    emit(result, as_json, lines)
