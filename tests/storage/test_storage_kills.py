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

from sherl_cache.storage import Store

SCRIPT = Path(__file__).with_name("store_builders.py")
SMALL_CASE = {"examples": {"train": 12}, "taps": {"encoder": (0,)}, "widths": {"encoder": 4}, "unit_memory": 1 << 20}

# Build n dies at once after its n-th call that changes the disk; each in a fork of one process, which saves imports.
KILLED_AFTER = f"""
import os, runpy, signal, sys
from pathlib import Path
from sherl_cache.storage import system
class Last(system.System):
    left = 0
    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name.startswith("_") or name == "left":
            return found
        def counted(*arguments):
            answer = found(*arguments)
            Last.left -= 1
            if Last.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer
        return counted
system.system = Last()
case = runpy.run_path({str(SCRIPT)!r})["Case"](**{SMALL_CASE!r}, encoding=sys.argv[2])
number = died = 0
while number == died:
    number += 1
    child = os.fork()
    if child == 0:
        Last.left = number
        case.build(Path(sys.argv[1], str(number)))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    died += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
print(died, os.waitstatus_to_exitcode(status))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("encoding", ["float32", "int8+zstd:1"])
def test_dead_after_each_single_call_the_store_is_finished_by_running_again(
    builders: ModuleType, tmp_path: Path, encoding: str
) -> None:
    case = builders.Case(**SMALL_CASE, encoding=encoding)
    expected = case.build(tmp_path / "whole").digest
    ended = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER, tmp_path / "store", encoding], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    died, last_status = map(int, ended.stdout.split())
    assert last_status == 0
    assert died > 50
    for number in range(1, died + 1):
        root = tmp_path / "store" / str(number)
        store = case.build(root)
        assert store.digest == expected
        assert store.verify(deep=True) == []
        assert not [path for path in root.rglob("*") if path.name.endswith(".tmp")]
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
