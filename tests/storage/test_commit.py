"""Commits under bad luck: every system call failing in turn, races, and file systems without hard links."""

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sherl_cache.storage import Store, commit, keys, system
from sherl_cache.storage.errors import AccessDenied, OutOfSpace, SherlCacheError, UsageError

NAMES = ("open", "writev", "fsync", "close", "link", "rename", "rename_new", "unlink", "mkdir")
DATA = [b"one", b"", b"two" * 1000, np.arange(50)]
CONTENT = b"".join(bytes(memoryview(part).cast("B")) if len(part) else b"" for part in DATA)


class Shim(system.System):
    """Real calls, counted; `before` may raise or answer in place of a call."""

    def __init__(self, before: Callable[[int, str, tuple[Any, ...]], Any]) -> None:
        self.count = 0
        self.before = before

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in NAMES:
            return found

        def counted(*arguments: Any) -> Any:
            self.count += 1
            answer = self.before(self.count, name, arguments)
            return found(*arguments) if answer is None else answer

        return counted


@contextmanager
def shimmed(before: Callable[[int, str, tuple[Any, ...]], Any]) -> Iterator[Shim]:
    real, system.system = system.system, Shim(before)
    try:
        yield system.system
    finally:
        system.system = real


def failing(number: int, code: int) -> Callable[[int, str, tuple[Any, ...]], None]:
    """The n-th call fails, with an error number that such a call can give."""

    def before(count: int, name: str, arguments: tuple[Any, ...]) -> None:
        if count == number:
            raise OSError(code, os.strerror(code))

    return before


def fail_each_call(code: int, action: Callable[[int], Any]) -> Iterator[tuple[int, SherlCacheError]]:
    """Run action(n) with its n-th call failing, for n = 1, 2, ... until it makes fewer calls than that."""
    for number in itertools.count(1):
        with shimmed(failing(number, code)) as shim:
            try:
                action(number)
            except SherlCacheError as error:
                failure = error
            else:
                assert shim.count < number, f"call {number} failed and nobody noticed"
                assert number > 5
                return
        yield number, failure


def temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_published_bytes_are_there_and_their_record_is_right(tmp_path: Path) -> None:
    record = commit.publish(tmp_path / "a" / "b" / "file", DATA)
    assert (tmp_path / "a" / "b" / "file").read_bytes() == CONTENT
    assert (record.bytes, record.sha256) == (len(CONTENT), keys.digest_bytes(CONTENT))
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS])
def test_each_failing_call_leaves_the_whole_file_or_none(tmp_path: Path, code: int) -> None:
    expected = {
        errno.ENOSPC: OutOfSpace,
        errno.EDQUOT: OutOfSpace,
        errno.EACCES: AccessDenied,
        errno.EROFS: AccessDenied,
    }.get(code, SherlCacheError)
    for number, error in fail_each_call(code, lambda n: commit.publish(tmp_path / str(n) / "file", DATA)):
        path = tmp_path / str(number) / "file"
        assert type(error) is expected
        assert str(tmp_path) in str(error)
        assert not path.exists() or path.read_bytes() == CONTENT
        commit.publish(path, DATA)
        assert path.read_bytes() == CONTENT
        commit.sweep(tmp_path, finished={str(number)})
        assert temporary_files(tmp_path) == []


def test_a_full_disk_is_told_with_bytes_and_place(tmp_path: Path) -> None:
    def before(count: int, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "writev":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with shimmed(before), pytest.raises(OutOfSpace, match=rf"{len(CONTENT):,} bytes.*bytes are free"):
        commit.publish(tmp_path / "file", DATA)
    assert temporary_files(tmp_path) == []


def test_interrupted_calls_and_short_writes_are_continued(tmp_path: Path) -> None:
    interrupted: set[int] = set()

    def before(count: int, name: str, arguments: tuple[Any, ...]) -> Any:
        if count % 2 and count not in interrupted:
            interrupted.add(count)
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
        if name == "writev":
            descriptor, buffers = arguments
            return os.write(descriptor, bytes(buffers[0])[:7])
        return None

    with shimmed(before):
        commit.publish(tmp_path / "file", DATA)
    assert (tmp_path / "file").read_bytes() == CONTENT


@given(parts=st.lists(st.binary(max_size=30), max_size=8), cuts=st.lists(st.integers(1, 40), min_size=1))
def test_any_pattern_of_short_writes_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("short") / "file"
    taken = iter(cuts * 300)

    def before(count: int, name: str, arguments: tuple[Any, ...]) -> Any:
        if name != "writev":
            return None
        descriptor, buffers = arguments
        return os.write(descriptor, b"".join(buffers)[: next(taken)])

    with shimmed(before):
        record = commit.publish(path, parts)
    assert path.read_bytes() == b"".join(parts)
    assert record.sha256 == keys.digest_bytes(b"".join(parts))


def test_more_buffers_than_one_call_takes(tmp_path: Path) -> None:
    parts = [bytes([n % 256]) for n in range(3000)]
    commit.publish(tmp_path / "file", parts)
    assert (tmp_path / "file").read_bytes() == b"".join(parts)


def test_the_first_of_two_equal_writers_wins_and_the_second_adopts(tmp_path: Path) -> None:
    path = tmp_path / "file"
    first = commit.publish(path, DATA)
    inode = path.stat().st_ino
    assert commit.publish(path, DATA) == first
    assert path.stat().st_ino == inode


def test_a_winner_that_is_accepted_is_adopted_with_its_own_digest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    winner = commit.publish(path, [b"winner"])
    assert commit.publish(path, [b"loser"], accept=lambda _: True) == winner
    assert path.read_bytes() == b"winner"


def test_a_bad_winner_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"cut of")
    record = commit.publish(path, [b"cut off"], accept=lambda _: False)
    assert path.read_bytes() == b"cut off"
    assert record.bytes == 7
    assert [aside.read_bytes() for aside in temporary_files(tmp_path)] == [b"cut of"]


def test_many_writers_of_one_file_agree(tmp_path: Path) -> None:
    records: list[Any] = []

    def write(number: int) -> None:
        records.append(commit.publish(tmp_path / "file", [b"%d" % number], accept=lambda _: True))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {record.sha256 for record in records} == {keys.digest_bytes((tmp_path / "file").read_bytes())}


def refusing(names: Sequence[str], code: int) -> Callable[[int, str, tuple[Any, ...]], None]:
    def before(count: int, name: str, arguments: tuple[Any, ...]) -> None:
        if name in names:
            raise OSError(code, os.strerror(code))

    return before


@pytest.mark.parametrize(
    ("refused", "code", "mode"),
    [
        ([], errno.EPERM, "link"),
        (["link"], errno.EPERM, "rename"),
        (["link"], errno.EOPNOTSUPP, "rename"),
        (["link", "rename_new"], errno.ENOSYS, "marker"),
    ],
)
def test_without_hard_links_the_next_way_gives_the_same(
    tmp_path: Path, refused: list[str], code: int, mode: str
) -> None:
    path = tmp_path / "file"
    with shimmed(refusing(refused, code)):
        assert commit.link_mode(tmp_path) == mode
        first = commit.publish(path, DATA)
        assert commit.publish(path, [b"loser"], accept=lambda _: True) == first
        assert commit.publish(path, [b"better"], accept=lambda _: False).bytes == 6
    assert path.read_bytes() == b"better"
    commit.sweep(tmp_path, finished={"."})
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_replace_leaves_the_old_or_the_new_bytes(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    commit.replace(path, b"old")
    for _ in fail_each_call(errno.EIO, lambda _: commit.replace(path, b"new")):
        assert path.read_bytes() in (b"old", b"new")
        commit.replace(path, b"old")
    commit.replace(path, b"new")
    assert path.read_bytes() == b"new"


def test_sweep_spares_files_of_living_processes(tmp_path: Path) -> None:
    with commit.Pending(tmp_path / "mine") as pending:
        pending.write(b"half")
        gone = tmp_path / pending._temporary.name.replace(f"-{os.getpid()}-", "-999999999-")
        gone.write_bytes(b"left behind")
        assert commit.sweep(tmp_path) == [gone]
        pending.publish()
    assert (tmp_path / "mine").read_bytes() == b"half"


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="file"):
        commit.publish(tmp_path / "file" / "inner", [b""])


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_store_survives_a_failure_of_any_call_of_its_making(builders: ModuleType, tmp_path: Path, code: int) -> None:
    case = builders.Case(examples={"train": 20}, taps={"encoder": (0,)}, widths={"encoder": 4})
    expected = case.build(tmp_path / "whole").digest
    for number, error in fail_each_call(code, lambda n: case.build(tmp_path / str(n))):
        root = tmp_path / str(number)
        assert isinstance(error, OutOfSpace) == (code == errno.ENOSPC)
        store: Store = case.build(root)
        assert store.digest == expected
        assert store.verify(deep=True) == []
        assert temporary_files(root) == []
