"""Failing calls, flipped bits and swapped files: nothing wrong is served, everything is found, the same command finishes."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.storage import faults, flips, trace
from benchmarks.storage.row import Scale
from benchmarks.storage.seam import Unsynced, Watched, installed
from benchmarks.storage.small import Small
from sherl_cache.storage import Store, commit, verify_store
from sherl_cache.storage.errors import SherlCacheError, StoreCorrupt

BOTH = pytest.mark.parametrize(
    "quick", [True, pytest.param(False, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)


@BOTH
def test_whichever_call_fails_the_store_is_readable_and_the_same_command_finishes(tmp_path: Path, quick: bool) -> None:
    kinds: set[str] = set()
    for row in faults.rows(Scale(quick=quick), tmp_path):
        assert row.details["wrong"] == []
        assert row.holds
        kinds |= {what.partition(":")[0] for what in row.details["shown"]}
    assert kinds == set(faults.KINDS)


@BOTH
def test_every_damage_is_found_before_it_is_served_and_located(tmp_path: Path, quick: bool) -> None:
    for row in flips.rows(Scale(quick=quick), tmp_path):
        assert row.details["wrong"] == []
        assert row.holds


def test_a_file_whose_fsync_failed_is_gone_and_never_published(tmp_path: Path) -> None:
    failed: list[int] = []

    def before(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "fsync" and not failed and os.path.isfile(f"/proc/self/fd/{arguments[0]}"):
            failed.append(number)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    watched = Watched(before)
    with installed(watched), commit.Pending(tmp_path / "file") as pending:
        pending.write(b"bytes")
        with pytest.raises(SherlCacheError, match="Input/output error"):
            pending.publish()
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(SherlCacheError):
            pending.publish()
    assert list(tmp_path.iterdir()) == []
    assert failed
    assert not any(call.name == "link" for call in watched.log)


def test_an_interrupted_close_is_not_repeated(tmp_path: Path) -> None:
    closed: list[int] = []

    def before(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "close":
            os.close(arguments[0])
            closed.append(arguments[0])
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))

    watched = Watched(before)
    with installed(watched):
        commit.publish(tmp_path / "file", [b"bytes"])
    assert len(closed) == sum(call.name == "open" for call in watched.log)
    assert (tmp_path / "file").read_bytes() == b"bytes"


@pytest.mark.timeout(20)
def test_a_system_that_takes_no_bytes_is_given_up(tmp_path: Path) -> None:
    with (
        installed(Watched(lambda number, name, arguments: (0,) if name == "writev" else None)),
        pytest.raises(SherlCacheError, match="cannot be written"),
    ):
        commit.publish(tmp_path / "file", [b"bytes"])
    assert list(tmp_path.iterdir()) == []


def test_a_whole_shard_of_another_tap_is_refused_at_first_touch(tmp_path: Path) -> None:
    with installed(Unsynced()):
        root = Small().build(tmp_path / "store").root
    shutil.copyfile(root / "train/encoder/h02/c/0/0", root / "train/encoder/h00/c/0/0")
    store = Store.open(root)
    with pytest.raises(StoreCorrupt, match=r"h00.*chunk 0 is whole, but not the one that was committed"):
        store.chunk("train", "encoder", 0, 0)
    assert {finding.path for finding in verify_store(root, deep=True)} == {"train/encoder/h00/c/0/0"}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_strace_sees_no_change_of_a_store_beside_the_seam(tmp_path: Path) -> None:
    [row] = trace.rows(Scale(quick=True), tmp_path)
    assert row.holds is not False, row.details
    if row.holds is None:
        pytest.skip(row.measured)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_strace_sees_what_is_written_beside_the_seam(tmp_path: Path) -> None:
    root = tmp_path / "store"
    code = f"import os; os.mkdir({str(root)!r}); open({str(root / 'x')!r}, 'w').write('x')"
    seen, noted, problem = trace.traced(code, root, tmp_path)
    if problem:
        pytest.skip(problem)
    assert set(seen) == {f"mkdir {root}", f"open {root / 'x'}", f"write {root / 'x'}"}
    assert not noted
