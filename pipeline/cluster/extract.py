"""Stage one on workers: where they are, what they are told, how it ended."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from ...stages.device import choose_device
from ...storage.errors import UsageError
from ..cores import usable_cores
from ..progress import progress
from .connect import Connection, attached, jobs, local, visible_devices
from .dispatch import Report, dispatch
from .settings import load_cluster
from .unit import UnitJob, forget, portable, run_unit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ...stages.prepare import ExtractSettings
    from ...storage import StoreWriter
    from ..walltime import WallTime


@dataclass(frozen=True)
class Workers:
    """Where units run; one of the first three is given.

    local: processes of this machine. scheduler: address of a dask scheduler, or the file that it wrote. cluster: a cluster
    file or a shipped name. threads: of a forward on a CPU, on each worker; None: as `threads_here` and Connection.threads
    say. dashboard: address that dask's dashboard is bound to, where the scheduler is ours.
    """

    local: int | None = None
    scheduler: str | None = None
    cluster: str | None = None
    threads: int | None = None
    dashboard: str = "127.0.0.1:0"

    def __post_init__(self) -> None:
        given = [name for name in ("local", "scheduler", "cluster") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError("--workers, --scheduler and --cluster are three places to run: give one of them")

    def make_ready(self, device: str) -> None:
        """Refuse what cannot be before any work, and compute here with the threads of a worker, so that what is looked at
        here has the bits of what is computed there. Raises UsageError, RecipeError.
        """
        threads = self.threads
        if self.cluster is not None:
            threads = threads or load_cluster(self.cluster).cores_a_worker
        if self.local is not None:
            threads = threads or threads_here(self.local)
        if threads is not None:
            torch.set_num_threads(threads)
        chosen = None if self.local is None else choose_device(device)
        if chosen is not None and chosen.type == "cuda":
            count = 1 if chosen.index is not None else torch.cuda.device_count()
            if self.local is not None and self.local > count:
                raise UsageError(
                    f"--workers {self.local}: each takes a GPU of its own, and {device} is {count}; use --workers {count}, or "
                    "--device cpu"
                )


def extract_on(
    workers: Workers, writer: StoreWriter, settings: ExtractSettings, device: str, wall_time: WallTime
) -> Report:
    """Run every missing unit of a store on workers. Raises what `dispatch` does, UsageError where no cluster answers."""
    units, missing = writer.units(), writer.missing()
    total, left = sum(unit.examples for unit in units), sum(unit.examples for unit in missing)
    with _connected(workers, writer.root, device) as there:
        print(f"dashboard: {there.dashboard}", file=sys.stderr, flush=True)
        job = UnitJob(
            root=str(writer.root.absolute()),
            plan=writer.chain.digests[-1],
            settings=portable(settings),
            device=device,
            threads=workers.threads or there.threads,
            ends_at=wall_time.ends_at if there.one_job else None,
        )
        try:
            with progress("extract", total, "examples", total - left) as bar:
                return dispatch(there, writer, partial(run_unit, job), bar, wall_time)
        finally:
            if workers.scheduler is not None and there.client.status == "running":
                there.client.run(forget, on_error="ignore")  # others may go on with these workers


@contextmanager
def _connected(workers: Workers, root: Path, device: str) -> Iterator[Connection]:
    if workers.local is not None:
        chosen = choose_device(device)
        names: list[str] = []
        if chosen.type == "cuda":
            torch.cuda.empty_cache()  # this process has done its part, and a worker wants the room
            names = visible_devices(torch.cuda.device_count())
            names = names if chosen.index is None else [names[chosen.index]]
        with local(workers.local, workers.threads or threads_here(workers.local), names, workers.dashboard) as found:
            yield found
    elif workers.scheduler is not None:
        with attached(workers.scheduler) as found:
            yield found
    else:
        assert workers.cluster is not None
        with jobs(load_cluster(workers.cluster), root, workers.dashboard) as found:
            yield found


def threads_here(workers: int) -> int:
    """Threads of a forward on each of some workers of this machine: OMP_NUM_THREADS, else an even share of the cores."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told):
        return int(told)
    return max(1, usable_cores() // workers)
