"""Workers and drivers that are killed: the digest of the lone run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cli import ENVIRONMENT, run, start
from reviews_csv import write_csv
from tiny import tiny_bert

from benchmarks.cluster import kills

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_killed_workers_leave_the_digest_of_the_lone_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At least 40 units on 3 workers, one killed at random 2 to 10 s after it was ready, 20 kills in all."""
    found = kills.measure(tmp_path, quick=False, seed=0)
    with capsys.disabled():
        print("\n" + "\n".join(kills.lines(found)))
    assert found["units"] >= kills.UNITS
    assert sum(item["kills"] for item in found["rounds"]) >= kills.KILLS
    assert all(item["same_digest"] for item in found["rounds"])
    # a worker holds two units at most, so a kill costs two at most
    assert all(item["rework"] <= 2 * item["kills"] for item in found["rounds"])


def test_a_killed_driver_goes_on_on_another_scheduler(tmp_path: Path) -> None:
    model = tiny_bert(tmp_path / "model", num_hidden_layers=4)
    data = write_csv(tmp_path / "train.csv", 1500)
    command = ("extract", "--model", model, "--data", data)
    command = (*command, "--unit-memory", "200KiB", "--set", "extract.chunk_bytes=4KiB")
    store, receipts = tmp_path / "store", tmp_path / "store" / "sherl" / "receipts"
    whole = run(*command, "--store", tmp_path / "whole", OMP_NUM_THREADS="1")
    driver = start(*command, "--store", store, "--workers", 2, "--threads", 1)
    while not receipts.exists() or len(list(receipts.iterdir())) < 5:
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.01)
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert gone
    assert not alive, "workers outlive the driver"
    file = tmp_path / "scheduler.json"
    words = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    scheduler = subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_scheduler", *words], env=ENVIRONMENT)
    words = ["--scheduler-file", str(file), "--nthreads", "2", "--memory-limit", "0", "--no-dashboard"]
    workers = [
        subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_worker", *words], env=ENVIRONMENT)
        for _ in range(2)
    ]
    try:
        while not file.exists() or not json.loads(file.read_text() or "{}"):
            assert scheduler.poll() is None
            time.sleep(0.05)
        found = run(*command, "--store", store, "--scheduler", file, "--threads", 1, OMP_NUM_THREADS="1")
    finally:
        for process in (*workers, scheduler):
            process.send_signal(signal.SIGTERM)
        for process in (*workers, scheduler):
            process.wait(60)
    assert found["digest"] == whole["digest"]
    assert not os.path.exists(store / "sherl" / "leases") or not list((store / "sherl" / "leases").iterdir())
