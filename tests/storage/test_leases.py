"""Leases save work: who gets which unit, when a writer counts as dead, and that a broken lease stops nobody."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sherl_cache.storage import StoreWriter, Unit, claim_units, claims, commit, leases, processes, system
from sherl_cache.storage.errors import StoreIncomplete
from sherl_cache.storage.readers.local import LocalFiles

ELSEWHERE = "otherhost_0123456789ab-1-00aa"


@pytest.fixture
def case(builders: ModuleType) -> Any:
    """Some ten units in one small array."""
    taps, widths = {"encoder": (0,)}, {"encoder": 4}
    return builders.Case(examples={"train": 24}, taps=taps, widths=widths, unit_memory=1, chunk_bytes=(256, 256))


def lease_files(root: Path) -> list[str]:
    folder = root / "sherl" / "leases"
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def hold(writer: StoreWriter, unit: Unit, name: str, beat: int = 0, number: int = 1) -> None:
    """A lease as another writer would leave it."""
    path = writer.root / "sherl" / "leases" / f"{unit.name}.{number}.json"
    commit.replace(path, leases.Lease(writer=name, beat=beat).to_bytes())


def ended_process() -> str:
    """The name of a process of this host that is over."""
    code = "from sherl_cache.storage.processes import process_name; print(process_name())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_lone_writer_gets_each_missing_unit_once_and_leaves_no_lease(case: Any, tmp_path: Path) -> None:
    expected = case.build(tmp_path / "whole").digest
    writer = case.create(tmp_path / "store")
    units = writer.units()
    assert len(units) >= 8
    got, held = [], []
    with claim_units(writer) as claimed:
        for unit in claimed:
            got.append(unit)
            held.append(lease_files(writer.root))
            case.fill(writer, unit)
    assert sorted(got, key=lambda unit: unit.index) == units
    assert held == [[f"{unit.name}.1.json"] for unit in got]
    assert writer.finalize().digest == expected
    assert lease_files(writer.root) == []


def test_units_given_out_and_not_yet_written_stay_leased(case: Any, tmp_path: Path) -> None:
    """As when one unit is committed while the next is computed."""
    writer = case.create(tmp_path)
    with claim_units(writer) as claimed:
        first, second = next(claimed), next(claimed)
        assert lease_files(tmp_path) == sorted(f"{unit.name}.1.json" for unit in (first, second))
        case.fill(writer, first)
        assert lease_files(tmp_path) == [f"{second.name}.1.json"]
    assert lease_files(tmp_path) == []


def test_two_writers_are_never_given_the_same_unit(case: Any, tmp_path: Path) -> None:
    writers = [case.create(tmp_path), case.create(tmp_path)]
    got: list[list[Unit]] = [[], []]
    with claim_units(writers[0]) as one, claim_units(writers[1], lease_seconds=1e6, skipped=lambda _: None) as other:
        for _ in range(3):
            got[0].append(next(one))
            got[1].append(next(other))
    assert len({*got[0], *got[1]}) == 6


def test_writers_begin_at_places_of_their_own(case: Any, tmp_path: Path) -> None:
    writer = case.create(tmp_path)
    begun = set()
    for _ in range(20):
        with claim_units(writer) as claimed:
            begun.add(next(claimed).index)
    assert len(begun) > 3


def test_the_folder_of_leases_is_not_listed_again_for_each_unit(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = case.create(tmp_path)
    listed: list[str] = []
    names = LocalFiles.names
    monkeypatch.setattr(LocalFiles, "names", lambda self, folder: (listed.append(folder), names(self, folder))[1])
    monkeypatch.setattr(claims, "time", Clock(lambda seconds: None))
    with claim_units(writer) as claimed:
        assert len(list(claimed)) == len(writer.units()) >= 8
    assert listed == [leases.FOLDER]


def test_a_unit_that_ended_elsewhere_is_given_no_sign_of_life(case: Any, tmp_path: Path) -> None:
    writer = case.create(tmp_path)
    with claim_units(writer, lease_seconds=0.2) as claimed:
        kept, ended = next(claimed), next(claimed)
        for unit in (kept, ended):
            leases.drop(tmp_path, unit.name)
        claimed.ended(ended)
        deadline = time.monotonic() + 30
        while lease_files(tmp_path) != [f"{kept.name}.1.json"] and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        # a lease that is written again lies beside itself for a moment, under a name with .tmp
        assert [name for name in lease_files(tmp_path) if not name.endswith(".tmp")] == [f"{kept.name}.1.json"]


class Clock:
    """In place of the module time: nobody sleeps; what happens meanwhile is said here."""

    def __init__(self, meanwhile: Callable[[float], None]) -> None:
        self.now, self.meanwhile = 0.0, meanwhile

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile(seconds)


def test_a_unit_of_a_silent_writer_comes_last_and_one_of_a_living_writer_not_before_it_falls_silent(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = case.create(tmp_path)
    silent, alive = writer.units()[:2]
    got: list[tuple[float, Unit]] = []
    last_beat = 0.0

    def other_writer(seconds: float) -> None:
        nonlocal last_beat
        if clock.now < 500:
            last_beat = clock.now
            hold(writer, alive, ELSEWHERE, int(clock.now * 1000))

    clock = Clock(other_writer)
    monkeypatch.setattr(claims, "time", clock)
    hold(writer, silent, ELSEWHERE)
    hold(writer, alive, ELSEWHERE)
    with claim_units(writer, lease_seconds=60) as claimed:
        for unit in claimed:
            got.append((clock.now, unit))
            case.fill(writer, unit)
    assert [unit for _, unit in got[-2:]] == [silent, alive]
    assert [when for when, _ in got[:-2]] == [0] * (len(got) - 2)
    assert 60 <= got[-2][0] < 62
    assert last_beat + 60 <= got[-1][0] < last_beat + 63


def test_a_unit_let_go_of_without_a_receipt_is_awaited_for_a_while(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may show that a lease went before it shows the receipt for which it went."""
    writer = case.create(tmp_path)
    late, given_up = writer.units()[:2]
    for unit in (late, given_up):
        hold(writer, unit, ELSEWHERE)

    def other_writer(seconds: float) -> None:
        if 10 < clock.now < 12:
            leases.drop(tmp_path)
        elif clock.now > 12:
            case.fill(writer, late)

    clock = Clock(other_writer)
    monkeypatch.setattr(claims, "time", clock)
    got = []
    with claim_units(writer) as claimed:
        for unit in claimed:
            got.append(unit)
            case.fill(writer, unit)
    assert late not in got
    assert got[-1] == given_up
    assert 13 < clock.now < 20


def test_a_unit_of_an_ended_process_of_this_host_is_taken_at_once(case: Any, tmp_path: Path) -> None:
    writer = case.create(tmp_path)
    name = ended_process()
    for unit in writer.units():
        hold(writer, unit, name)

    def waiting(units: int) -> None:
        pytest.fail(f"waited for {units} units")

    with claim_units(writer, waiting=waiting) as claimed:
        for unit in claimed:
            assert f"{unit.name}.2.json" in lease_files(tmp_path)
            case.fill(writer, unit)
    assert lease_files(tmp_path) == []


def test_a_unit_that_another_committed_is_skipped_and_told(case: Any, tmp_path: Path) -> None:
    writer = case.create(tmp_path)
    skipped: list[Unit] = []
    got = []
    with claim_units(writer, skipped=skipped.append) as claimed:
        for unit in claimed:
            got.append(unit)
            for mine in [unit, *writer.missing()[:3]]:
                case.fill(writer, mine)
    assert sorted([*got, *skipped], key=lambda unit: unit.index) == writer.units()
    assert skipped


def test_two_that_hold_one_unit_commit_it_once(case: Any, tmp_path: Path) -> None:
    writers = [case.create(tmp_path), case.create(tmp_path)]
    unit = writers[0].units()[0]
    first = [writer.buffer(unit) for writer in writers]
    for buffer in first:
        rows = case.rows("train", "encoder")
        mine = rows < len(buffer.arrays["encoder", 0])
        buffer.put("encoder", 0, rows[mine], case.values("train", "encoder", 0)[mine])
    receipts = [writer.write(unit, buffer) for writer, buffer in zip(writers, first, strict=True)]
    assert receipts[0] == receipts[1]


def test_an_error_lets_go_of_the_units_at_once(case: Any, tmp_path: Path) -> None:
    writer = case.create(tmp_path)

    def stopped() -> None:
        with claim_units(writer) as claimed:
            next(claimed)
            assert lease_files(tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert lease_files(tmp_path) == []


def test_an_error_while_waiting_is_raised(case: Any, tmp_path: Path) -> None:
    writer = case.create(tmp_path)
    for unit in writer.units():
        hold(writer, unit, ELSEWHERE)

    def waiting(units: int) -> None:
        raise StoreIncomplete("the thread beside failed")

    with pytest.raises(StoreIncomplete, match="beside"), claim_units(writer, waiting=waiting) as claimed:
        next(claimed)


class Refusing(system.System):
    """Calls on leases fail: every one of `names`, or the n-th one."""

    def __init__(self, code: int, names: tuple[str, ...] = (), number: int = 0) -> None:
        self.code, self.names, self.number, self.count = code, names, number, 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or name in ("code", "names", "number", "count"):
            return found

        def checked(*arguments: Any) -> Any:
            if any(isinstance(word, str) and "sherl/leases" in word for word in arguments):
                self.count += 1
                if name in self.names or self.count == self.number:
                    raise OSError(self.code, os.strerror(self.code))
            return found(*arguments)

        return checked


@contextmanager
def refusing(code: int, **how: Any) -> Iterator[Refusing]:
    real, system.system = system.system, Refusing(code, **how)
    try:
        yield system.system
    finally:
        system.system = real


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS, errno.ESTALE])
@pytest.mark.parametrize("name", ["mkdir", "open", "link", "unlink"])
def test_leases_that_cannot_be_written_stop_nothing(case: Any, tmp_path: Path, code: int, name: str) -> None:
    expected = case.build(tmp_path / "whole").digest
    with refusing(code, names=(name,)) as shim:
        assert case.work(tmp_path / "store", lease_seconds=0.2).digest == expected
    assert shim.count > 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_any_single_call_of_a_lease_may_fail(case: Any, tmp_path: Path, code: int) -> None:
    expected = case.build(tmp_path / "whole").digest
    for number in range(1, 14):  # the calls of the first unit and a half; the others make the same
        with refusing(code, number=number) as shim:
            assert case.work(tmp_path / str(number)).digest == expected
        assert shim.count >= number


@given(content=st.binary(max_size=200) | st.just(b'{"beat":0,"writer":"a"}') | st.just(b"x" * 5000))
@settings(max_examples=25)
def test_a_lease_with_any_content_is_waited_for_then_taken(
    builders: ModuleType, tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    small = builders.Case(examples={"train": 2}, taps={"encoder": (0,)}, widths={"encoder": 4}, unit_memory=1)
    root = tmp_path_factory.mktemp("store")
    writer = small.create(root)
    for unit in writer.units():
        commit.replace(root / "sherl" / "leases" / f"{unit.name}.7.json", content)
    (root / "sherl" / "leases" / "not a lease").write_bytes(content)
    with claim_units(writer, lease_seconds=0.02, settle_seconds=0) as claimed:
        assert len(list(claimed)) == len(writer.units())


def test_a_stopped_writer_is_taken_over_and_adopts_when_it_wakes(builders: ModuleType, tmp_path: Path) -> None:
    """Its lease falls silent though its process lives; what it then submits again changes nothing."""
    case = replace(builders.FORTY_UNITS, examples={"train": 100})
    expected = case.build(tmp_path / "whole").digest
    script = Path(__file__).with_name("store_builders.py")
    command = [sys.executable, str(script), str(tmp_path / "store"), "100", "1"]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    begun = other.stdout.readline()
    other.send_signal(signal.SIGSTOP)
    try:
        assert begun.strip()
        assert lease_files(tmp_path / "store")
        done: list[str] = []
        manifest = case.work(tmp_path / "store", 1.0, done=lambda unit: done.append(unit.name))
        assert manifest.digest == expected
    finally:
        other.send_signal(signal.SIGCONT)
    other.communicate()
    assert other.returncode == 0
    store = builders.Store.open(tmp_path / "store")
    assert store.digest == expected
    assert store.verify(deep=True) == []


def test_finalize_waits_for_receipts_only_where_another_writer_was_seen(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(leases, "time", Clock(naps.append))
    writer = case.create(tmp_path)
    unit, *others = writer.units()
    for other in others:
        case.fill(writer, other)
    for name in ("nobody", ended_process(), processes.process_name()):
        if name != "nobody":
            hold(writer, unit, name)
        with pytest.raises(StoreIncomplete, match=unit.name):
            writer.finalize()
    assert naps == []
    hold(writer, unit, ELSEWHERE)
    with pytest.raises(StoreIncomplete, match=unit.name):
        writer.finalize()
    assert naps == [leases.SETTLE_SECONDS]

    monkeypatch.setattr(leases, "time", Clock(lambda _: case.fill(writer, unit)))
    assert writer.finalize().digest


def test_names_of_processes_tell_the_ended_from_those_that_may_live() -> None:
    mine = processes.process_name()
    place, pid, token = mine.split("-")
    assert not processes.is_gone(mine)
    assert processes.is_gone(ended_process())
    assert processes.is_gone(f"{place}-{pid}-{'0' * len(token)}-3")  # a restarted container: the same number again
    assert not processes.is_gone(f"{place}-{os.getppid()}-00")  # alive, or its number was given again
    assert not processes.is_gone(ELSEWHERE)
    assert not processes.is_gone(mine.replace(place, place[:-1] + "g"))  # the same host, another boot or container


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_a_process_has_ended_before_its_parent_asks_how() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    name = f"{processes.process_name().split('-')[0]}-{process.pid}-00"
    until = time.monotonic() + 60
    while not processes.is_gone(name):
        assert time.monotonic() < until
        time.sleep(0.01)
    process.wait()


def test_a_fork_has_a_name_of_its_own() -> None:
    code = """
import os
from sherl_cache.storage.processes import process_name
mine = process_name()
child = os.fork()
if child == 0:
    os._exit(0 if process_name().split("-")[2] != mine.split("-")[2] else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@given(st.text(max_size=80) | st.from_regex(r"[a-z_0-9]{1,8}-[0-9]{1,25}-[0-9a-f]{1,8}", fullmatch=True))
def test_no_name_is_taken_for_a_living_process_of_this_place_by_mistake(name: str) -> None:
    assert not processes.is_gone(name)


def test_the_holders_are_the_living_writers_of_the_newest_leases(case: Any, tmp_path: Path) -> None:
    writer = case.create(tmp_path / "store")
    first, second, third, *_ = writer.units()
    hold(writer, first, ended_process(), number=1)
    hold(writer, first, ELSEWHERE, beat=7, number=2)
    hold(writer, second, ended_process())
    hold(writer, third, f"{processes.process_name()}-5")
    [one, two] = leases.holders(LocalFiles(writer.root))
    assert (one.unit, one.host, one.pid, one.beat) == (first.name, "otherhost", 1, 7)
    assert (two.unit, two.pid) == (third.name, os.getpid())
