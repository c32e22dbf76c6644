"""Jobs of batch systems: what their scripts ask for, and a job that is killed is replaced."""

import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import dask
import pytest
from cluster_cases import Subject, run

from sherl_cache.pipeline.cluster.connect import job_options, jobqueue, jobs, log_folder
from sherl_cache.pipeline.cluster.one_gpu import gpu_of
from sherl_cache.pipeline.cluster.settings import parse_cluster
from sherl_cache.pipeline.cluster.unit import run_unit

FILE = {
    "queue": "long",
    "account": "lab7",
    "wall_time": "26h30min",
    "cores": 8,
    "memory": "24GiB",
    "workers": 4,
    "gpus": 4,
    "scratch": "$TMPDIR",
    "setup": ["module load cuda"],
    "directives": ["--constraint=a100"],
    "python": "'/opt/a python/bin/python' -u",
}
ASKS = {
    "slurm": ["-p long", "-t 26:30:00", "--cpus-per-task=8", "--mem=24G", "--gpus-per-node=4"],
    "pbs": ["-q long", "select=1:ncpus=8:mem=24576mb:ngpus=4", "-l walltime=26:30:00"],
    "lsf": ["-q long", "-n 8", "-W 26:30", '-gpu "num=4"'],
    "sge": ["-q long", "-l h_rt=26:30:00"],
}


def test_ctrl_c_is_what_it_was_after_dask_jobqueue_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plain import installs a handler of its own; where it no longer does, `jobqueue` has nothing to put back."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "dask_jobqueue"]:
            monkeypatch.delitem(sys.modules, name)

    before = signal.getsignal(signal.SIGINT)
    try:
        forget()
        importlib.import_module("dask_jobqueue")
        assert signal.getsignal(signal.SIGINT) is not before
        signal.signal(signal.SIGINT, before)
        forget()
        jobqueue()
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("scheduler", sorted(ASKS))
def test_a_job_asks_for_what_the_cluster_file_says(scheduler: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = parse_cluster({"scheduler": scheduler, **FILE}, "here.yaml")
    options = job_options(file, tmp_path / "store", "127.0.0.1:0")
    kept = {name: value for name, value in options.items() if name not in _OF_THE_CLUSTER}
    job = getattr(jobqueue(), f"{scheduler.upper()}Cluster").job_cls("tls://10.0.0.1:8786", **kept)
    script = job.job_script()
    for asked in [*ASKS[scheduler], "--constraint=a100", "module load cuda"]:
        assert asked in script, script
    words = script.splitlines()[-1]
    assert words.startswith("'/opt/a python/bin/python' -u -m distributed.cli.dask_worker tls://10.0.0.1:8786")
    # of options that are given twice the last counts: two tasks a worker, and no limit that would take a model for a leak
    assert words.rindex("--nthreads 2") > words.index("--nthreads")
    assert words.rindex("--memory-limit 0") > words.index("--memory-limit")
    assert "--nworkers 4" in words
    assert "--preload-nanny sherl_cache.pipeline.cluster.one_gpu" in words
    assert '--local-directory "${TMPDIR:?is not set on this node}"' in words
    assert "export OMP_NUM_THREADS=2" in script
    exported = [
        line.removeprefix("export ").split("=", 1) for line in script.splitlines() if line.startswith("export ")
    ]
    with dask.config.set(dask.config.collect_env({name: value.strip('"') for name, value in exported})):
        assert dask.config.get("distributed.worker.profile.enabled") is False
        assert dask.config.get("distributed.admin.tick.interval") == "1s"
        assert dask.config.get("distributed.admin.system-monitor.interval") == "5s"
        assert dask.config.get("distributed.comm.timeouts.connect") == "300s"
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert log_folder(tmp_path / "store").is_dir()
    assert not (tmp_path / "store").exists()


_OF_THE_CLUSTER = ("security", "shared_temp_directory", "scheduler_options", "silence_logs")


def test_each_worker_of_a_job_has_a_gpu_of_its_own() -> None:
    assert [gpu_of(number, "2,GPU-7f, 5,") for number in range(3)] == ["2", "GPU-7f", "5"]
    assert [gpu_of(number, None) for number in range(2)] == ["0", "1"]


SBATCH = """#!/bin/bash
# runs the job at once, in a session of its own; its number is that of its first process
setsid bash "$1" > "$FAKE_JOBS/out" 2>&1 &
echo $! >> "$FAKE_JOBS/numbers"
echo "Submitted batch job $!"
sleep 0.1  # the script is deleted once this ends
"""
SCANCEL = """#!/bin/bash
kill -9 -- "-$1"
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_that_is_killed_is_replaced(subject: Subject, tmp_path: Path, monkeypatch) -> None:
    """dask-jobqueue with an `sbatch` that runs the real script here: the first job is killed as a whole."""
    bin_, fake = tmp_path / "bin", tmp_path / "jobs"
    bin_.mkdir()
    fake.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_JOBS", str(fake))
    monkeypatch.chdir(tmp_path)
    file = parse_cluster(
        {"scheduler": "slurm", "wall_time": "1h", "cores": 2, "workers": 2, "memory": "2GiB", "max_jobs": 1},
        "here.yaml",
    )
    writer, job = subject.begin(tmp_path / "store")
    killing = threading.Thread(target=kill_first_job, args=(fake / "numbers", tmp_path / "store"))
    with jobs(file, tmp_path / "store", "127.0.0.1:0") as there:
        scheduler, dashboard = urlsplit(there.client.scheduler_info()["address"]), urlsplit(there.dashboard.split()[0])
        assert scheduler.scheme == "tls"
        assert dashboard.hostname == "127.0.0.1"
        socket.create_connection(("127.0.0.1", dashboard.port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((scheduler.hostname, dashboard.port))
        assert [path.stat().st_mode & 0o77 for path in tmp_path.glob(".dask-jobqueue.*")] == [0, 0, 0]
        killing.start()
        report = run(there, writer, partial(run_unit, job))
        killing.join()
    # `there`: committed by the killed job, which could not say so any more; each of its two workers held two units
    assert report.there <= 4
    assert report.done + report.there == len(writer.units())
    assert not list(tmp_path.glob(".dask-jobqueue.*"))
    assert len((fake / "numbers").read_text().split()) >= 2
    assert writer.finalize().digest == subject.digest


def kill_first_job(numbers: Path, store: Path) -> None:
    """Once a unit is committed."""
    while not list((store / "sherl" / "receipts").glob("*")):
        time.sleep(0.01)
    os.killpg(int(numbers.read_text().split()[0]), signal.SIGKILL)
