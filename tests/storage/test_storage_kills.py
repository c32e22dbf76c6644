"""Killed at any instant, a store is finished by running the same again, and equals the unbroken one."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.storage.killed import killed_after_each_call
from benchmarks.storage.small import Small
from sherl_cache.storage import Store

SCRIPT = Path(__file__).with_name("store_builders.py")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("encoding", ["float32", "int8+zstd:1"])
def test_dead_after_each_single_call_the_store_is_finished_by_running_again(tmp_path: Path, encoding: str) -> None:
    case = Small(parts={"train": (8,)}, taps={"encoder": (0,)}, encoding=encoding)
    expected = case.build(tmp_path / "whole").digest
    died = 0
    for root in killed_after_each_call(case.build, tmp_path / "store"):
        died += 1
        store = case.build(root)
        assert store.digest == expected
        assert store.verify(deep=True) == []
        assert not [path for path in root.rglob("*") if path.name.endswith(".tmp")]
    assert died > 50
    print(f"killed after each of {died} calls")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_a_store_of_many_units_ends_as_the_unbroken_one(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.FORTY_UNITS
    units = len(case.plan().units())
    assert units >= 40
    expected = case.build(tmp_path / "whole").digest
    draw = random.Random(0)
    roots = [tmp_path / "store-0"]
    receipts: list[int] = []
    while len(receipts) < 50:
        root = roots[-1]
        process = subprocess.Popen([sys.executable, str(SCRIPT), str(root), str(case.examples["train"])])
        begun = len(receipts_of(root))
        while len(receipts_of(root)) == begun and process.poll() is None:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            receipts.append(len(receipts_of(root)))
        if len(receipts_of(root)) == units:
            roots.append(tmp_path / f"store-{len(roots)}")
    partial = sum(0 < found < units for found in receipts)
    for root in roots:
        assert case.build(root).digest == expected
        assert Store.open(root).verify(deep=True) == []
    print(f"{len(receipts)} kills of {units} units, {partial} left a partial store, receipts found: {receipts}")
    assert partial >= 40


def receipts_of(root: Path) -> list[str]:
    folder = root / "sherl" / "receipts"
    return [name for name in os.listdir(folder) if name.endswith(".json") and name[0] != "."] if folder.is_dir() else []


def test_two_processes_building_one_store_end_with_the_unbroken_one(builders: ModuleType, tmp_path: Path) -> None:
    case = replace(builders.FORTY_UNITS, examples={"train": 100})
    expected = case.build(tmp_path / "whole").digest
    command = [sys.executable, str(SCRIPT), str(tmp_path / "store"), "100"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, told = process.communicate()
        assert process.returncode == 0, told
    store = Store.open(tmp_path / "store")
    assert store.digest == expected
    assert store.verify(deep=True) == []
