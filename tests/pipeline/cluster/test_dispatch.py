"""Units on workers: the digest is that of the lone run, whatever is lost, repeated, late, failing or unfit."""

import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from cluster_cases import Silent, Subject, run, threads, until_there
from distributed import Client, get_worker

from sherl_cache.pipeline.cluster.connect import Connection
from sherl_cache.pipeline.cluster.dispatch import ATTEMPTS, FAILURES_IN_A_ROW, dispatch
from sherl_cache.pipeline.cluster.keepers import MOST_STARTS, WorkerKeeper
from sherl_cache.pipeline.cluster.unit import Outcome, UnitJob, run_unit
from sherl_cache.pipeline.walltime import WallTime
from sherl_cache.storage import Store
from sherl_cache.storage.errors import Interrupted, NonFinite, OutOfSpace, SherlCacheError, StoreIncomplete, StoreStale

SEEN: Counter[str] = Counter()
"""Tasks by unit; workers are threads of this process."""


def failing(job: UnitJob, units: tuple[str, ...], times: int, name: str) -> Outcome:
    """`run_unit`, but for some units the first so many times."""
    SEEN[name] += 1
    if name in units and SEEN[name] <= times:
        return Outcome(name, "failed", error=NonFinite("h03: 7 values are NaN"))
    return run_unit(job, name)


def test_units_on_workers_end_in_the_digest_of_the_lone_run(
    subject: Subject, connection: Connection, tmp_path: Path
) -> None:
    writer, job = subject.begin(tmp_path / "store")
    report = run(connection, writer, partial(run_unit, job))
    assert (report.done, report.there, report.failed) == (len(writer.units()), 0, {})
    assert writer.finalize().digest == subject.digest
    assert Store.open(tmp_path / "store").verify(deep=True) == []


def test_every_unit_given_twice_at_once_ends_in_the_same_digest(
    subject: Subject, connection: Connection, tmp_path: Path
) -> None:
    writer, job = subject.begin(tmp_path / "store")
    names = [unit.name for unit in writer.units() for _ in range(2)]
    outcomes = connection.client.gather(connection.client.map(partial(run_unit, job), names, pure=False))
    kinds = Counter(outcome.kind for outcome in outcomes)
    assert set(kinds) <= {"done", "there"}, outcomes
    assert kinds["done"] >= len(names) // 2
    assert writer.finalize().digest == subject.digest


def test_two_drivers_share_the_units(subject: Subject, connection: Connection, tmp_path: Path) -> None:
    writer, job = subject.begin(tmp_path / "store")
    other, _ = subject.begin(tmp_path / "store")
    reports = []
    drivers = [
        threading.Thread(target=lambda one=one: reports.append(run(connection, one, partial(run_unit, job))))
        for one in (writer, other)
    ]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert sum(report.done for report in reports) == len(writer.units())
    assert writer.finalize().digest == subject.digest


def test_a_unit_that_fails_twice_and_then_not_is_in_the_store(
    subject: Subject, connection: Connection, tmp_path: Path
) -> None:
    SEEN.clear()
    writer, job = subject.begin(tmp_path / "store")
    report = run(connection, writer, partial(failing, job, ("train-00003",), ATTEMPTS - 1))
    assert report.retried == ATTEMPTS - 1
    assert writer.finalize().digest == subject.digest


def test_a_unit_that_always_fails_is_named_while_the_others_go_on(
    subject: Subject, connection: Connection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SEEN.clear()
    writer, job = subject.begin(tmp_path / "store")
    with pytest.raises(StoreIncomplete, match=r"1 units failed(.|\n)*unit train-00003: h03: 7 values are NaN"):
        run(connection, writer, partial(failing, job, ("train-00003",), 99))
    assert SEEN["train-00003"] == ATTEMPTS
    assert [unit.name for unit in writer.missing()] == ["train-00003"]
    assert "unit train-00003: h03: 7 values are NaN; the others go on" in capsys.readouterr().err
    run(connection, writer, partial(run_unit, job))
    assert writer.finalize().digest == subject.digest


def test_where_every_unit_fails_the_rest_is_not_tried(subject: Subject, connection: Connection, tmp_path: Path) -> None:
    SEEN.clear()
    writer, job = subject.begin(tmp_path / "store")
    names = tuple(unit.name for unit in writer.units())
    with pytest.raises(StoreIncomplete, match=r"and \d+ more"):
        run(connection, writer, partial(failing, job, names, 99))
    assert len(SEEN) < len(names)
    assert sum(count == ATTEMPTS for count in SEEN.values()) >= FAILURES_IN_A_ROW


def no_space(name: str) -> Outcome:
    SEEN[name] += 1
    return Outcome(name, "failed", error=OutOfSpace("no space left"))


def test_a_full_disk_stops_at_once(subject: Subject, connection: Connection, tmp_path: Path) -> None:
    SEEN.clear()
    writer, _ = subject.begin(tmp_path / "store")
    with pytest.raises(OutOfSpace):
        run(connection, writer, no_space)
    assert max(SEEN.values()) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [({"batch_tokens": 65}, "forward.batch_tokens"), ({"precision": "float64"}, "forward.precision")],
)
def test_workers_with_other_settings_are_refused(
    subject: Subject, connection: Connection, tmp_path: Path, change: dict[str, object], told: str
) -> None:
    writer, job = subject.begin(tmp_path / "store")
    other = replace(job, settings=replace(job.settings, **change))
    with pytest.raises(StoreStale, match=f"was begun with another .*{told}"):
        run(connection, writer, partial(run_unit, other))
    assert writer.missing() == writer.units()


def test_workers_that_find_another_store_are_refused(subject: Subject, connection: Connection, tmp_path: Path) -> None:
    writer, job = subject.begin(tmp_path / "store")
    with pytest.raises(StoreStale, match="the store here is another one"):
        run(connection, writer, partial(run_unit, replace(job, plan="0" * 64)))


def test_no_unit_is_begun_that_the_wall_time_cannot_hold(
    subject: Subject, connection: Connection, tmp_path: Path
) -> None:
    writer, job = subject.begin(tmp_path / "store")
    with pytest.raises(Interrupted, match="0 s of wall time are left, too little for another unit"):
        run(connection, writer, partial(run_unit, job), WallTime(time.time() - 1))
    assert writer.missing() == writer.units()
    wall_time = WallTime(time.time() + 3600)
    wall_time.took(1, 3600)  # a unit was seen to take an hour
    with pytest.raises(Interrupted, match="too little"):
        run(connection, writer, partial(run_unit, job), wall_time)
    assert writer.missing() == writer.units()
    run(connection, writer, partial(run_unit, job), WallTime(time.time() + 3600))
    assert writer.finalize().digest == subject.digest


def short_of_time(job: UnitJob, short: str, name: str) -> Outcome:
    """One worker's job is about to end."""
    address = get_worker().address
    return Outcome(name, "late", address) if address == short else run_unit(job, name)


def test_a_worker_whose_job_ends_goes_and_another_takes_its_units(subject: Subject, tmp_path: Path) -> None:
    writer, job = subject.begin(tmp_path / "store")
    with threads() as cluster, Client(cluster, set_as_default=False) as client:
        short, _ = client.scheduler_info(n_workers=-1)["workers"]
        report = run(Connection(client), writer, partial(short_of_time, job, short))
        assert list(client.scheduler_info(n_workers=-1)["workers"]) != []
        assert short not in client.scheduler_info(n_workers=-1)["workers"]
    assert report.done == len(writer.units())
    assert writer.finalize().digest == subject.digest


def waiting(name: str) -> Outcome:
    SEEN[name] += 1
    time.sleep(0.3)
    return Outcome(name, "there")


def test_a_scheduler_that_goes_away_is_no_defect(subject: Subject, tmp_path: Path) -> None:
    SEEN.clear()
    writer, _ = subject.begin(tmp_path / "store")
    with threads() as cluster, Client(cluster, set_as_default=False, timeout=1) as client:

        def leave() -> None:
            while not SEEN:
                time.sleep(0.01)
            client.close()

        leaving = threading.Thread(target=leave)
        leaving.start()
        with pytest.raises(Interrupted, match="the dask scheduler went away"):
            run(Connection(client), writer, waiting)
        leaving.join()


def test_the_bar_shows_every_example_once(subject: Subject, connection: Connection, tmp_path: Path) -> None:
    writer, job = subject.begin(tmp_path / "store")
    bar = Silent()
    dispatch(connection, writer, partial(run_unit, job), bar, WallTime(None))
    assert bar.examples == sum(unit.examples for unit in writer.units())


def test_a_worker_that_gave_up_is_started_again() -> None:
    """As a nanny does whose first worker does not come up; here the worker closes."""
    with threads() as cluster, Client(cluster, set_as_default=False) as client:
        keep = WorkerKeeper(cluster)
        keep()
        left, ended = cluster.workers.values()
        cluster.sync(ended.close)
        until_there(client, 1)
        keep()
        until_there(client, 2)
        assert left.address in client.nthreads()
        for _ in range(MOST_STARTS * 2 - 1):
            cluster.sync(next(iter(cluster.workers.values())).close)
            keep()
        cluster.sync(next(iter(cluster.workers.values())).close)
        with pytest.raises(SherlCacheError, match="before they could begin"):
            keep()
