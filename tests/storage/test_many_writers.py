"""Processes that write one store at the same time end in the store of a lone one, without doing the same work."""

import collections
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sherl_cache.storage import Store, Unit, ledger

SCRIPT = Path(__file__).with_name("store_builders.py")
WRITERS = 8


def start(root: Path, examples: int, lease_seconds: float) -> "subprocess.Popen[str]":
    """One writer; its stdout names each unit that it computes."""
    command = [sys.executable, str(SCRIPT), str(root), str(examples), str(lease_seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_equals_lone(case: Any, store: Store, digest: str) -> None:
    """Digest, bytes and every value of every example are those of the store that one writer made."""
    assert store.digest == digest
    assert store.verify(deep=True) == []
    for split in case.examples:
        packed = case.packed(split)
        for stream, taps in case.taps.items():
            height = packed.streams[stream].chunk_rows
            rows = case.rows(split, stream)
            for tap in taps:
                chunks = [store.chunk(split, stream, tap, group) for group in range(len(packed.group_examples))]
                assert all(len(chunk) == height for chunk in chunks)
                found = np.concatenate(chunks)
                expected = case.values(split, stream, tap)
                assert np.array_equal(found[rows], expected)
                held = np.zeros(len(found), np.bool_)
                held[rows] = True
                assert np.isnan(found[~held]).all()


def test_eight_processes_from_the_first_call_on_make_one_store_and_no_unit_twice(
    builders: ModuleType, tmp_path: Path
) -> None:
    case = replace(builders.FORTY_UNITS, examples={"train": 100})
    digest = case.build(tmp_path / "whole").digest
    writers = [start(tmp_path / "store", 100, 60) for _ in range(WRITERS)]
    computed: list[str] = []
    ended = [(process.communicate(), process.returncode) for process in writers]
    for (out, told), code in ended:
        assert code == 0, told
        computed += out.split()
    units = [unit.name for unit in case.plan().units()]
    assert sorted(computed) == units
    store = Store.open(tmp_path / "store")
    assert store.digest == digest
    assert store.verify(deep=True) == []
    left = [path.name for path in (tmp_path / "store").rglob("*") if path.suffix == ".tmp" or "leases/" in str(path)]
    assert left == []


@pytest.mark.parametrize("count", [2, 4])
def test_every_unit_submitted_twice_by_writers_that_ask_nobody_is_there_once(
    builders: ModuleType, tmp_path: Path, count: int
) -> None:
    """No leases at all: threads with writers of their own, each unit given to two of them."""
    case = builders.Case(examples={"train": 40}, unit_memory=1)
    digest = case.build(tmp_path / "whole").digest
    writers = [case.create(tmp_path / "store") for _ in range(count)]
    twice: list[Unit] = [*writers[0].units(), *writers[0].units()]
    random.Random(0).shuffle(twice)
    threads = [
        threading.Thread(target=lambda n=n: [case.fill(writers[n], unit) for unit in twice[n::count]])
        for n in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {writer.finalize().digest for writer in writers} == {digest}
    assert_equals_lone(case, Store.open(tmp_path / "store"), digest)


def test_two_that_finalise_at_once_publish_one_manifest(
    builders: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One looks for a manifest, the other publishes its own and sweeps, then the first goes on."""
    case = builders.Case(examples={"train": 20})
    one, other = case.create(tmp_path), case.create(tmp_path)
    for unit in one.missing():
        case.fill(one, unit)
    look = ledger.newest_manifest

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(ledger, "newest_manifest", look)
        found = look(*arguments)
        other.finalize()
        return found

    monkeypatch.setattr(ledger, "newest_manifest", interrupted)
    assert one.finalize() == other.finalize()
    assert [path.name for path in (tmp_path / "sherl").glob("manifest-*")] == ["manifest-1.json"]


def test_a_folder_that_another_writer_makes_between_two_looks_is_not_taken_for_a_file(
    builders: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, root = builders.Case(), tmp_path / "store"
    looks: list[Path] = []
    look = Path.is_dir

    def made_after_the_first_look(path: Path) -> bool:
        found = look(path)
        if path == root and not looks:
            looks.append(path)
            case.build(root)
        return found

    monkeypatch.setattr(Path, "is_dir", made_after_the_first_look)
    assert case.create(root).missing() == []
    assert looks


def test_the_units_of_killed_writers_are_done_by_those_that_live(builders: ModuleType, tmp_path: Path) -> None:
    case = replace(builders.FORTY_UNITS, examples={"train": 200})
    digest = case.build(tmp_path / "whole").digest
    case.create(tmp_path / "store")
    doomed = [start(tmp_path / "store", 200, 60) for _ in range(3)]
    computed: list[str] = []
    for process in doomed:
        assert process.stdout is not None
        computed.append(process.stdout.readline().strip())
        process.kill()
        computed += process.stdout.read().split()  # communicate() would pass over what readline() had taken in
        process.communicate()
    in_flight = len(doomed)
    survivor = start(tmp_path / "store", 200, 60)
    out, told = survivor.communicate()
    assert survivor.returncode == 0, told
    computed += out.split()
    units = [unit.name for unit in case.plan().units()]
    counts = collections.Counter(computed)
    assert set(counts) == set(units)
    assert len(computed) <= len(units) + in_flight
    store = Store.open(tmp_path / "store")
    assert store.digest == digest
    assert store.verify(deep=True) == []
