"""A begun store, what to tell workers of it, and a dask cluster of threads in this process."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from distributed import Client, LocalCluster

from sherl_cache.pipeline.cluster.connect import Connection
from sherl_cache.pipeline.cluster.dispatch import LOSSES, Report, dispatch
from sherl_cache.pipeline.cluster.unit import Outcome, UnitJob, forget
from sherl_cache.pipeline.walltime import WallTime
from sherl_cache.stages.preparation import Preparation
from sherl_cache.storage import StoreWriter

Task = Callable[[str], Outcome]


class Silent:
    """A progress bar that adds up."""

    def __init__(self) -> None:
        self.examples = 0

    def advance(self, amount: int, note: str = "") -> None:
        self.examples += amount


@dataclass
class Subject:
    """An extraction of a dozen units."""

    prepared: Preparation
    digest: str
    """Of the store that a lone process makes."""

    def begin(self, root: Path) -> tuple[StoreWriter, UnitJob]:
        writer = self.prepared.create_writer(root)
        return writer, UnitJob(
            str(root), writer.chain.digests[-1], self.prepared.settings, "cpu", torch.get_num_threads()
        )


@contextlib.contextmanager
def threads(workers: int = 2) -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=workers,
        threads_per_worker=2,
        processes=False,
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        scheduler_kwargs={"allowed_failures": LOSSES},
    ) as cluster:
        yield cluster
    forget()


def run(connection: Connection, writer: StoreWriter, task: Task, wall_time: WallTime | None = None) -> Report:
    return dispatch(connection, writer, task, Silent(), wall_time or WallTime(None))


def until_there(client: Client, workers: int) -> None:
    """Wait for so many; `client.wait_for_workers` has its cluster forget those whose leaving it was not told of yet, and fail."""
    while len(client.nthreads()) != workers:
        time.sleep(0.01)
