"""What dask leaves undone for a cluster of its own: workers and jobs that ended without being replaced."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from distributed import Status

from ...storage.errors import SherlCacheError

if TYPE_CHECKING:
    from distributed import SpecCluster

MOST_STARTS: Final = 5
"""How often a worker of this machine is started that was never there."""
_LOST_SECONDS: Final = 10.0
"""A job none of whose workers was seen for so long has ended."""
_ENDED: Final = (Status.closed, Status.failed)


class WorkerKeeper:
    """Nannies replace workers that die; one that could not start its first worker, as on a machine that is too busy, gives up
    and is replaced by this.
    """

    def __init__(self, cluster: SpecCluster) -> None:
        self._cluster = cluster
        self._starts = 0

    def __call__(self) -> None:
        """Raises SherlCacheError where workers end again and again before they are there."""
        ended = [name for name, nanny in self._cluster.workers.items() if nanny.status in _ENDED]
        if not ended:
            return
        self._starts += len(ended)
        if self._starts > MOST_STARTS * len(self._cluster.worker_spec):
            raise SherlCacheError(
                f"workers ended {self._starts} times before they could begin; without --workers the work runs in one process"
            )
        for name in ended:
            del self._cluster.workers[name]
        self._cluster.scale(len(self._cluster.worker_spec))  # opens what its plan names and is not there


class JobKeeper:
    """Adaptive scaling counts a job that ended as one that is planned; this gives it up, so that another one is asked for."""

    def __init__(self, cluster: SpecCluster) -> None:
        self._cluster = cluster
        self._lost: dict[str, float | None] = {}
        """Since when none of a job's workers is there, None while one is; jobs that still wait in the queue are not in it."""

    def __call__(self) -> None:
        there = {worker["name"] for worker in self._cluster.scheduler_info["workers"].values()}
        now = time.monotonic()
        for job, spec in list(self._cluster.worker_spec.items()):
            if there & {f"{job}{suffix}" for suffix in spec.get("group", [""])}:
                self._lost[job] = None
            elif job in self._lost:
                since = self._lost[job] or now
                self._lost[job] = since
                if now - since >= _LOST_SECONDS:
                    del self._lost[job]
                    self._cluster.sync(self._cluster.scale_down, [job])
