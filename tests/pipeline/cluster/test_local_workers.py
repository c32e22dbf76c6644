"""Worker processes of this machine: one GPU each, guarded, replaced when they are killed, and the digest of the lone run."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import dask
import pytest
from cluster_cases import Subject, run, until_there

from sherl_cache.pipeline.cluster.connect import local
from sherl_cache.pipeline.cluster.unit import run_unit


@pytest.mark.timeout(900)  # two processes import everything, on machines that are busy too
def test_a_killed_worker_is_replaced_and_the_digest_is_that_of_the_lone_run(subject: Subject, tmp_path: Path) -> None:
    """Two workers, one of which is killed once a unit is committed; the other may be starting still."""
    writer, job = subject.begin(tmp_path / "store")
    with local(2, job.threads or 1, ["7", "9"], "127.0.0.1:0") as there:
        until_there(there.client, 2)
        info = there.client.scheduler_info(n_workers=-1)
        addresses = [info["address"], *info["workers"]]
        assert all(address.startswith("tls://127.0.0.1:") for address in addresses), addresses
        assert there.dashboard.startswith("http://127.0.0.1:")
        intervals = there.client.run(lambda: dask.config.get("distributed.admin.tick.interval"))
        assert set(intervals.values()) == {"1s"}
        environments = there.client.run(lambda: (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]))
        assert sorted(environments.values()) == [("7", str(job.threads)), ("9", str(job.threads))]
        processes = there.client.run(os.getpid)
        victim = processes[min(processes)]
        for process in processes.values():
            os.kill(process, signal.SIGINT)  # as a terminal does to all of a group
            os.kill(process, signal.SIGUSR1)

        def kill() -> None:
            while not list((tmp_path / "store" / "sherl" / "receipts").glob("*")):
                time.sleep(0.1)
            os.kill(victim, signal.SIGKILL)

        killing = threading.Thread(target=kill)
        killing.start()
        report = run(there, writer, partial(run_unit, job))
        killing.join()
        until_there(there.client, 2)
        again = there.client.run(os.getpid)
    assert set(again.values()) & set(processes.values()) == set(processes.values()) - {victim}
    assert report.failed == {}
    assert writer.finalize().digest == subject.digest
