"""Every missing unit of a store to some worker of a dask cluster, until all are committed or have failed by themselves.

The driver claims units as any other writer does (storage/leases.py), so that several drivers, and plain `extract` beside
them, share the work. Two units a worker are on their way: one runs, one commits. What is exactly once is decided by the
store's commit alone; here, a task may be lost, repeated or late without harm.
"""

from __future__ import annotations

import queue
import secrets
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from distributed import KilledWorker

from ...storage import claim_units
from ...storage.errors import AccessDenied, Interrupted, OutOfSpace, SherlCacheError, StoreIncomplete

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Future

    from ...storage import StoreWriter, Unit
    from ...storage.leases import Claims
    from ..progress import Progress
    from ..walltime import WallTime
    from .connect import Connection
    from .unit import Outcome

ATTEMPTS: Final = 3
"""How often a unit is tried that fails by itself."""
LOSSES: Final = 20
"""How many workers may be lost over one unit before it is taken for the cause."""
FAILURES_IN_A_ROW: Final = 10
"""So many units that failed, and none between them that did not: the rest would too."""
UNFIT: Final = 2
"""So many workers that cannot run any unit, and none that can: all are alike."""
MOST_UNFIT: Final = 10
UNITS_A_WORKER: Final = 2
_POLL_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 2.0
_SHOWN: Final = 5


@dataclass
class Report:
    """What came of a run of `dispatch`."""

    done: int = 0
    """Units that its tasks committed."""
    there: int = 0
    """Tasks that found their unit committed."""
    lost: int = 0
    """Tasks whose worker was lost over them more often than dask allows, and that were given again."""
    retried: int = 0
    failed: dict[str, SherlCacheError] = field(default_factory=dict)
    """By unit, the last error of those that failed by themselves."""


def dispatch(
    cluster: Connection,
    writer: StoreWriter,
    task: Callable[[str], Outcome],
    bar: Progress,
    wall_time: WallTime,
) -> Report:
    """Run `task` for the name of every missing unit.

    Raises Interrupted where the wall time ends or the scheduler goes away, StoreIncomplete naming the units that failed
    `ATTEMPTS` times each, once all others are committed; OutOfSpace, AccessDenied and what no worker can do at once.
    """
    return _Dispatch(cluster, writer, task, bar, wall_time).run()


class _Dispatch:
    def __init__(
        self,
        cluster: Connection,
        writer: StoreWriter,
        task: Callable[[str], Outcome],
        bar: Progress,
        wall_time: WallTime,
    ) -> None:
        self.cluster, self.client, self.writer = cluster, cluster.client, writer
        self.task, self.bar, self.wall_time = task, bar, wall_time
        self.report = Report()
        self.claims: Claims | None = None
        self.ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self.at_work: dict[Future[Any], Unit] = {}
        self.tries: Counter[str] = Counter()
        self.losses: Counter[str] = Counter()
        self.in_a_row = 0
        self.fit: set[str] = set()
        self.unfit: list[SherlCacheError] = []
        self.told: set[str] = set()
        self.stopping = False
        self.workers = 0
        self.looked = float("-inf")
        self.waited_since = time.monotonic()
        self.run_name, self.number = f"extract-{secrets.token_hex(4)}", 0

    def run(self) -> Report:
        try:
            with claim_units(self.writer, skipped=self._skipped, waiting=self._others) as self.claims:
                for unit in self.claims:
                    self._submit(unit)
                    while not self.stopping and len(self.at_work) >= self._window():
                        self._await()
                    if self.stopping:
                        break
                while self.at_work:
                    self._await()
        finally:
            if self.at_work and self.client.status == "running":
                self.client.cancel(list(self.at_work), force=True)
        self._raise_what_is_left()
        return self.report

    def _window(self) -> int:
        """Units that may be on their way."""
        self._look()
        return UNITS_A_WORKER * max(self.workers, self.cluster.most_workers or 0, 1)

    def _look(self) -> None:
        """See now and then how many workers there are."""
        if time.monotonic() - self.looked < _LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        self._require_scheduler()
        self.cluster.keep()
        self.workers = len(self.client.nthreads())
        if self.workers:
            self.waited_since = self.looked
            self.bar.advance(0, f"{self.workers} workers")
        else:
            self.bar.advance(0, f"no worker since {self.looked - self.waited_since:.0f} s")

    def _submit(self, unit: Unit) -> None:
        if not self.wall_time.fits(unit.examples):
            self.stopping = True
            return
        self.number += 1
        future = self.client.submit(self.task, unit.name, key=(self.run_name, self.number), pure=False)
        self.at_work[future] = unit
        future.add_done_callback(self.ended.put)

    def _await(self) -> None:
        """Take what has ended; wait a moment where nothing has."""
        self._look()
        try:
            first = self.ended.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return
        self._take_all(first)

    def _others(self, units: int) -> None:
        """Other writers hold what is left: meanwhile, take what has ended."""
        self._look()
        self._take_all()
        if not self.at_work:
            self.bar.advance(0, f"waiting for {units} units of other writers")

    def _skipped(self, unit: Unit) -> None:
        self.bar.advance(unit.examples)

    def _take_all(self, *futures: Future[Any]) -> None:
        """What has ended, its outcomes fetched at once: a way to the workers and back for each would be all that many have."""
        found = list(futures)
        while not self.ended.empty():
            found.append(self.ended.get())
        ended = {future: unit for future in found if (unit := self.at_work.pop(future, None)) is not None}
        finished = {future.key: future for future in ended if future.status == "finished"}
        outcomes: dict[Any, Outcome | None] = self.client.gather(finished, errors="skip") if finished else {}
        for future, unit in ended.items():
            outcome = outcomes.get(future.key)
            if outcome is None:
                self._lose(unit, future)
            else:
                self._end(unit, outcome)

    def _end(self, unit: Unit, outcome: Outcome) -> None:
        if outcome.kind == "unfit":
            self._unfit(unit, outcome)
            return
        self.fit.add(outcome.worker)
        self._tell(outcome)
        if outcome.kind == "failed":
            assert outcome.error is not None
            self._fail(unit, outcome.error)
        elif outcome.kind == "late":
            self._late(unit, outcome)
        else:
            self.in_a_row = 0
            if self.claims is not None:
                self.claims.ended(unit)
            if outcome.kind == "done":
                self.report.done += 1
                self.wall_time.took(unit.examples, outcome.seconds)
            else:
                self.report.there += 1
            self.bar.advance(unit.examples)

    def _fail(self, unit: Unit, error: SherlCacheError) -> None:
        if isinstance(error, (OutOfSpace, AccessDenied)):
            raise error
        self.tries[unit.name] += 1
        if self.tries[unit.name] < ATTEMPTS and not self.stopping:
            self.report.retried += 1
            self._submit(unit)
            return
        self._give_up(unit, error)

    def _give_up(self, unit: Unit, error: SherlCacheError) -> None:
        self.report.failed[unit.name] = error
        self.in_a_row += 1
        self.stopping |= self.in_a_row >= FAILURES_IN_A_ROW
        then = "no more are begun" if self.stopping else "the others go on"
        print(f"{_named(unit.name, error)}; {then}", file=sys.stderr, flush=True)

    def _lose(self, unit: Unit, future: Future[Any]) -> None:
        """A task that did not end: its worker was lost, which is not the unit's fault, or the scheduler was."""
        self._require_scheduler()
        error = future.exception() if future.status == "error" else None
        if error is not None and not isinstance(error, KilledWorker):
            self._fail(
                unit, SherlCacheError(f"{type(error).__name__}: {error}")
            )  # it could not even be given to a worker
            return
        self.losses[unit.name] += 1 if error is None else error.allowed_failures + 1
        if self.losses[unit.name] > LOSSES:
            self._give_up(
                unit, SherlCacheError(f"{self.losses[unit.name]} workers were lost while they had it: out of memory?")
            )
        else:
            self.report.lost += 1
            self._submit(unit)

    def _late(self, unit: Unit, outcome: Outcome) -> None:
        """The worker's job ends too soon for another unit: it goes, and another one takes the unit."""
        if self.cluster.one_job:
            self.stopping = self.wall_time.refused = True
            return
        self.client.retire_workers([outcome.worker], close_workers=True)
        self.looked = float("-inf")
        self._submit(unit)

    def _unfit(self, unit: Unit, outcome: Outcome) -> None:
        assert outcome.error is not None
        self.unfit.append(outcome.error)
        if len(self.unfit) >= (MOST_UNFIT if self.fit else UNFIT):
            raise outcome.error
        self._say(f"worker {outcome.worker} cannot take units: {outcome.error}")
        if self.fit:
            self.client.retire_workers([outcome.worker], close_workers=True)
        self._submit(unit)

    def _tell(self, outcome: Outcome) -> None:
        """Once, what of a worker's environment is not as where the store was begun."""
        for differs in outcome.differs:
            self._say(f"a worker has {differs}, other than where the store was begun; last bits may differ")

    def _say(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def _require_scheduler(self) -> None:
        if self.client.status != "running":
            raise Interrupted(
                "the dask scheduler went away; --scheduler with another one, or --workers, goes on as well"
            )

    def _raise_what_is_left(self) -> None:
        failed = self.report.failed
        if failed:
            shown = [_named(name, error) for name, error in sorted(failed.items())[:_SHOWN]]
            more = [f"and {len(failed) - _SHOWN} more"] if len(failed) > _SHOWN else []
            raise StoreIncomplete(
                f"{self.writer.root}: {len(failed)} units failed and are not in the store, all others that were begun are "
                "committed; the same command tries them again:\n" + "\n".join([*shown, *more])
            )
        if self.stopping:
            raise Interrupted(self.wall_time.told)


def _named(unit: str, error: SherlCacheError) -> str:
    told = str(error)
    return told if f"unit {unit}" in told else f"unit {unit}: {told}"
