"""Tasks of a step of a real SLURM on this machine train together, are stopped together, and go on."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bert

slurm_on_loopback = pytest.importorskip("slurm_on_loopback", reason="no SLURM for tests here")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm() -> Iterator[Any]:
    reason = slurm_on_loopback.why_not()
    if reason is not None:
        pytest.skip(reason)
    with slurm_on_loopback.LoopbackSlurm() as found:
        yield found


def test_the_tasks_of_a_step_are_ranks_and_end_with_75_when_slurm_signals_them(slurm: Any, tmp_path: Path) -> None:
    """One node, where they meet by what SLURM says; then two, whose names nobody resolves here, by MASTER_ADDR."""
    model = tiny_bert(tmp_path / "model")
    files = (
        "--data",
        write_csv(tmp_path / "train.csv", 97),
        "--validation",
        write_csv(tmp_path / "dev.csv", 30, seed=1),
    )
    call("extract", "--model", model, *files, "--store", tmp_path / "cache", "--encoding", "float32")
    train = f"train --store {tmp_path}/cache --set data.batch_examples=16 --set dropout={{}} --run"
    python = f"{sys.executable} -m sherl_cache.pipeline"
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/bash\nexport OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1\n"
        f'export PYTHONPATH="{os.environ.get("PYTHONPATH", "")}"\n'
        f"srun -N 1 -n 2 {python} {train} {tmp_path}/stopped --epochs 1000\necho code $?\n"
        f"MASTER_ADDR=127.0.0.1 srun -N 2 -n 2 {python} {train} {tmp_path}/short --epochs 2\necho code $?\n"
    )
    job = slurm.run("sbatch", "--parsable", "-N", 2, "-n", 4, "-o", tmp_path / "out", script)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    until = time.monotonic() + 240
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < until, (tmp_path / "out").read_text()
        time.sleep(0.2)
    slurm.run("scancel", f"--signal={signal.SIGUSR1.name.removeprefix('SIG')}", job)
    slurm.wait(job)
    said = (tmp_path / "out").read_text()
    assert [line for line in said.splitlines() if line.startswith("code")] == ["code 75", "code 0"], said
    for rank in (0, 1):
        assert f"rank {rank} of 2: training was asked to end; step " in said
    lone = call(*train.split()[:-1], "--run", tmp_path / "lone", "--epochs", 2)
    found = json.loads((tmp_path / "short" / "result.json").read_text())
    assert found["steps"] == lone["steps"]
    assert found["best"] == pytest.approx(lone["best"], abs=0.05)
