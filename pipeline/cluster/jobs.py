"""A run as batch jobs: the scripts written into a folder, and submitted where that is asked for."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...storage import commit
from ...storage.errors import SherlCacheError, UsageError
from ...storage.place import local_folder
from .scripts import LOGS, RECIPE, SUBMIT, Jobs, scripts

if TYPE_CHECKING:
    from ..recipe import Recipe
    from .settings import Cluster

MOST_PARTS: Final = 1000
"""An array that most clusters take (MaxArraySize is 1001 unless a site says otherwise)."""


def write_jobs(
    recipe: Recipe, cluster: Cluster, store: str, folder: Path, run: Path | None = None, parts: int | None = None
) -> dict[str, Any]:
    """Write the scripts of a run into `folder`, with the resolved recipe that they read; what was written.

    parts: tasks of the array; None: as many as run at a time. Raises UsageError for another scheduler than SLURM, without a
    model or data, and for paths that a script cannot hold.
    """
    if cluster.scheduler != "slurm":
        raise UsageError(
            f"sbatch writes scripts of SLURM, and this cluster has {cluster.scheduler}; sherl-cache extract --cluster runs on it"
        )
    for key in ("model", "data"):
        if getattr(recipe.extract, key) is None:
            raise UsageError(f"the recipe names no extract.{key}; give it there, or as --{key}")
    jobs = Jobs(
        cluster=cluster,
        name=recipe.name,
        folder=_absolute(folder),
        work=_absolute(Path()),
        store=_absolute(local_folder(store)),
        run=None if run is None else _absolute(run),
        parts=parts or cluster.max_jobs,
    )
    if jobs.parts > MOST_PARTS:
        raise UsageError(
            f"--parts {jobs.parts}: an array has at most {MOST_PARTS} tasks; each does as many units as it can"
        )
    (jobs.folder / LOGS).mkdir(parents=True, exist_ok=True)
    written = {RECIPE: f"# sherl-cache train --store {store} --config {RECIPE}\n{recipe.to_yaml()}", **scripts(jobs)}
    for name, text in written.items():
        commit.replace(jobs.folder / name, text.encode())
    return {
        "folder": str(jobs.folder),
        "scripts": list(written),
        "store": str(jobs.store),
        "parts": jobs.parts,
        "submitted": None,
    }


def submit(folder: Path) -> dict[str, str]:
    """Run the script that submits, and the numbers of the jobs. Raises UsageError where there is no SLURM."""
    try:
        done = subprocess.run(["bash", str(folder / SUBMIT)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UsageError(f"there is no bash here; submit {folder / SUBMIT} on a login node of the cluster") from None
    if done.returncode != 0:
        told = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        kind = UsageError if "command not found" in told else SherlCacheError
        raise kind(f"{folder / SUBMIT}: nothing more was submitted: {told}")
    return dict(line.split() for line in done.stdout.splitlines())


def _absolute(path: Path) -> Path:
    """From the root on, links left as they are. Raises UsageError for characters that scripts and logs cannot hold."""
    found = path.expanduser().absolute()
    if not str(found).isprintable():
        raise UsageError(f"{str(found)!r}: a path with control characters cannot stand in a script; choose another")
    return found
