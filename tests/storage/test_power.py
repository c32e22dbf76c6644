"""Power cuts: no state that a disk may show serves a wrong byte, and the model of the disk loses what it should."""

import os
import random
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.storage import power
from benchmarks.storage.power_disk import Disk
from benchmarks.storage.row import Scale
from benchmarks.storage.scenarios import EXTRACTION, SCENARIOS, Scenario, right
from benchmarks.storage.seam import Watched, installed
from benchmarks.storage.small import Small
from sherl_cache.storage import Store, commit, system

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_after_a_power_cut_nothing_wrong_is_served_and_the_same_command_finishes(tmp_path: Path, quick: bool) -> None:
    rows = list(power.rows(Scale(quick=quick), tmp_path))
    assert [row.details["wrong"] for row in rows] == [[]] * len(SCENARIOS)
    assert sum(row.details["states"] for row in rows) == (60 if quick else 1000)
    assert sum(row.details["shown"].get("part served", 0) for row in rows) > 0
    assert all(row.holds for row in rows)


def wrongs(tmp_path: Path, count: int, scenario: Scenario = EXTRACTION) -> list[str]:
    draw = random.Random(0)
    expected = right(scenario, tmp_path / "whole")
    found = power.cuts(scenario, tmp_path / "records", draw)
    wrong: list[str] = []
    for _, state, promised in islice(power.states(found, draw), count):
        seen = power.examine_state(scenario, state, promised, tmp_path / "state", expected)
        wrong += [what for what in seen if what.startswith("WRONG")]
    return wrong


def test_a_writer_that_does_not_sync_its_files_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit.Pending, "_sync", commit.Pending._release)
    assert wrongs(tmp_path, 20)


def test_a_writer_that_does_not_sync_its_folders_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "sync_folder", lambda folder: None)
    assert wrongs(tmp_path, 20)


def test_a_growth_that_does_not_settle_before_its_manifest_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "settle", lambda root, but: None)
    monkeypatch.setattr(commit, "sync_folder", lambda folder: None)
    assert wrongs(tmp_path, 40, BY_NAME["growth by examples"])


def test_a_repair_that_takes_the_plan_away_first_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def aside_first(path: Path, data: bytes) -> None:
        commit.set_aside(path)
        commit.publish(path, [data])

    assert not wrongs(tmp_path / "right", 30, BY_NAME["repair of the plan"])
    monkeypatch.setattr(commit, "replace", aside_first)
    assert wrongs(tmp_path / "wrong", 30, BY_NAME["repair of the plan"])


def test_names_left_by_a_dead_writer_are_durable_before_anything_rests_on_them(tmp_path: Path) -> None:
    (tmp_path / "store" / "sherl").mkdir(parents=True)
    (tmp_path / "store" / "sherl" / "left").write_bytes(b"")
    watched = Watched()
    with installed(watched):
        commit.settle(tmp_path / "store", but="nothing")
    synced = {call.arguments[0] for call in watched.log if call.name == "open"}
    assert synced == {str(tmp_path / "store"), str(tmp_path / "store" / "sherl")}
    assert sum(call.name == "fsync" for call in watched.log) == 2


def test_parents_that_another_writer_made_are_synced_too(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    watched = Watched()
    with installed(watched):
        commit.publish(tmp_path / "a" / "b" / "c" / "file", [b"x"])
    assert {str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")} <= {
        call.arguments[0] for call in watched.log if call.name == "open"
    }


def recorded(base: Path) -> Disk:
    """A disk that was told of a file that is synced and one that is not, in a folder that is not."""
    watched = Watched()
    with installed(watched):
        for name in ("kept", "lost"):
            descriptor = system.call("open", str(base / name), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            system.call("writev", descriptor, [memoryview(b"bytes")])
            if name == "kept":
                system.call("fsync", descriptor)
                folder = system.call("open", str(base), os.O_RDONLY | os.O_DIRECTORY)
                system.call("fsync", folder)
                system.call("close", folder)
            system.call("close", descriptor)
        system.call("link", str(base / "kept"), str(base / "twin"))
    disk = Disk(base)
    for call in watched.log:
        disk.apply(call)
    return disk


def test_the_model_keeps_what_is_synced_and_tries_every_subset_of_the_rest(tmp_path: Path) -> None:
    disk = recorded(tmp_path)
    draw = random.Random(0)
    assert disk.state(0, draw) == {"kept": b"bytes"}
    assert disk.state(1, draw) == {"kept": b"bytes", "lost": b"bytes", "twin": b"bytes"}
    found = [disk.state(variant, draw) for variant in range(2, 6) for _ in range(40)]
    assert {frozenset(state) for state in found} == {
        frozenset(names) for names in (["kept"], ["kept", "lost"], ["kept", "twin"], ["kept", "lost", "twin"])
    }
    assert {state["kept"] for state in found} == {b"bytes"}
    assert {b"", b"bytes"} < {state["lost"] for state in found if "lost" in state}


def test_a_state_is_what_the_disk_holds_when_nothing_is_lost(tmp_path: Path) -> None:
    watched = Watched()
    with installed(watched):
        Small().build(tmp_path / "store")
    disk = Disk(tmp_path)
    for call in watched.log:
        disk.apply(call)
    real = {str(p.relative_to(tmp_path)): p.read_bytes() if p.is_file() else None for p in tmp_path.rglob("*")}
    assert disk.state(1, random.Random(0)) == real
    assert Store.open(tmp_path / "store").complete
