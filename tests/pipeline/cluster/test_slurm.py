"""The written scripts on a real SLURM: array, dependency, signal, time limit, requeue and cancelling."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli import call
from reviews_csv import write_csv
from slurm_on_loopback import LoopbackSlurm, why_not
from tiny import tiny_bert

from sherl_cache.pipeline.cluster.jobs import submit
from sherl_cache.storage import Store, leases

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(why_not() is not None, reason=f"no SLURM here: {why_not()}"),
]
PARTS = 3


@pytest.fixture(scope="module")
def slurm() -> Iterator[LoopbackSlurm]:
    with LoopbackSlurm() as slurm:
        yield slurm


@pytest.fixture
def run(tmp_path: Path, slurm: LoopbackSlurm, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Submits a run in a folder of its own; the numbers of its two jobs."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    work = tmp_path / 'it\'s a "folder" $HOME #1'
    work.mkdir()
    monkeypatch.chdir(work)
    tiny_bert(work / "model")
    write_csv(work / "train.csv", 120)
    write_csv(work / "validation.csv", 30, seed=1)

    def submitted(*words: object, parts: int = PARTS, **changed: Any) -> dict[str, str]:
        settings = {"scheduler": "slurm", "wall_time": "10min", "cores": 1, "memory": "512MiB", **changed}
        (work / "cluster.yaml").write_text(yaml.safe_dump(settings))
        recipe = ("--model", "model", "--data", "train.csv", "--validation", "validation.csv", "--unit-memory", "20000")
        small = ("--set", "extract.chunk_bytes=8192", "--parts", parts, "--run", "run", "--cluster", "cluster.yaml")
        result = call("sbatch", *recipe, *small, *words, "--submit")
        found: dict[str, str] = result["submitted"]
        return found

    return submitted


def log(name: str) -> str:
    return "\n".join(path.read_text() for path in sorted(Path("jobs/logs").glob(f"{name}-*.log")))


def metrics() -> int:
    path = Path("run/metrics.jsonl")
    return path.read_text().count("\n") if path.exists() else 0


def test_array_then_training_end_in_the_store_and_the_weights_of_lone_commands(
    slurm: LoopbackSlurm, run: Any, tmp_path: Path
) -> None:
    jobs = run("--set", "train.epochs=1", scratch=str(tmp_path / "node's disk"))
    assert slurm.facts(jobs["train"])[0]["JobState"] == "PENDING"
    extracts = slurm.wait(jobs["extract"], 900)
    assert [(fact["JobState"], fact["ExitCode"]) for fact in extracts] == [("COMPLETED", "0:0")] * PARTS, log("extract")
    [train] = slurm.wait(jobs["train"], 600)
    assert (train["JobState"], train["ExitCode"]) == ("COMPLETED", "0:0"), log("train")
    store = Store.open("cache")
    assert len(store.plan.units()) >= 2 * PARTS
    shares = [
        re.search(r"extract: (\d+)/(\d+) examples \(100 %\)", path.read_text()) for path in Path("jobs/logs").glob("e*")
    ]
    assert sum(int(share[2]) for share in shares if share) == 150  # each task did its share and no more
    assert "node's disk" in log("train")
    assert not list((tmp_path / "node's disk").iterdir())
    alone = ("--config", "jobs/recipe.yaml", "--store", tmp_path / "alone")
    assert call("extract", *alone)["digest"] == store.digest
    lone = call("train", *alone, "--run", tmp_path / "lone")
    assert (
        lone["weights_digest"]
        == call("train", "--config", "jobs/recipe.yaml", "--store", "cache", "--run", "run")["weights_digest"]
    )


# stands for python: a command that runs until it is told to stop; what each heard and when goes to a file
STUB = """\
#!/bin/bash
case $3 in train) ;; *) exit 0 ;; esac
started=$SECONDS
trap 'echo "USR1 after $((SECONDS - started)) s, start ${SLURM_RESTART_COUNT:-0}" >> heard; exit 75' USR1
trap 'echo TERM >> heard; exit 75' TERM
touch began
while :; do sleep 0.2; done
"""


@pytest.fixture
def stub(tmp_path: Path) -> str:
    (tmp_path / "stub.sh").write_text(STUB)
    return f"bash {tmp_path / 'stub.sh'}"


def test_before_the_time_limit_the_script_hears_of_it_and_is_queued_again_until_the_bound(
    slurm: LoopbackSlurm, run: Any, stub: str
) -> None:
    jobs = run(parts=1, python=stub, max_requeues=1, stop_seconds=20, train={"wall_time": "1min"})
    [ended] = slurm.wait(jobs["train"], 400)
    told = log("train")
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "1"), told
    heard = Path("heard").read_text().splitlines()
    assert [line.rpartition(", ")[2] for line in heard] == ["start 0", "start 1"]
    assert all(int(line.split()[2]) < 60 for line in heard)
    assert "queued again after stop 1 of at most 1" in told  # one log, to which both starts append
    assert "stopped more than 1 times" in told


def test_a_job_that_is_cancelled_is_not_queued_again_though_it_ends_with_75(
    slurm: LoopbackSlurm, run: Any, stub: str
) -> None:
    jobs = run(parts=1, python=stub)
    slurm.wait_until(jobs["train"], lambda facts: Path("began").exists())
    slurm.run("scancel", jobs["train"])
    [ended] = slurm.wait(jobs["train"], 60)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")
    assert "TERM" in Path("heard").read_text()
    assert "queued again" not in log("train")


def test_training_that_is_signalled_goes_on_where_it_was_when_it_is_queued_again(
    slurm: LoopbackSlurm, run: Any
) -> None:
    jobs = run("--set", "train.epochs=100000", parts=1, max_requeues=1, wall_time="2h")
    slurm.wait(jobs["extract"], 1200)
    slurm.wait_until(jobs["train"], lambda facts: metrics() > 20, 1200)
    slurm.run("scancel", "--signal=USR1", jobs["train"])  # as SLURM sends it: to the steps, and not to the script
    slurm.wait_until(jobs["train"], lambda facts: facts[0]["Restarts"] == "1", 300)
    steps = metrics()
    slurm.wait_until(jobs["train"], lambda facts: metrics() > steps + 20, 1200)
    slurm.run("scancel", "--signal=USR1", jobs["train"])
    [ended] = slurm.wait(jobs["train"], 300)
    told = log("train")
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "1"), told
    assert told.count("the same command goes on from there") == 2, told
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    taken = [line["step"] for line in lines if "loss" in line]
    assert taken == list(range(1, len(taken) + 1))  # no step is lost, none is there twice


def test_a_cancelled_array_stays_cancelled_and_training_goes_with_it(slurm: LoopbackSlurm, run: Any) -> None:
    jobs = run(parts=2)
    until = time.monotonic() + 1200
    while not Path("cache/sherl/plan.json").exists():
        assert time.monotonic() < until, log("extract")
        time.sleep(0.05)
    slurm.run("scancel", jobs["extract"])
    extracts = slurm.wait(jobs["extract"], 120)
    assert {fact["JobState"] for fact in extracts} <= {"CANCELLED", "COMPLETED"}
    assert any(fact["JobState"] == "CANCELLED" for fact in extracts)
    [train] = slurm.wait(jobs["train"], 120)
    assert train["JobState"] == "CANCELLED"
    assert all(fact["Restarts"] == "0" for fact in slurm.facts(jobs["extract"]))
    again = submit(Path("jobs"))  # the same scripts go on
    assert all(fact["JobState"] == "COMPLETED" for fact in slurm.wait(again["extract"], 900)), log("extract")
    slurm.run("scancel", again["train"])
    assert not list(Path("cache", leases.FOLDER).iterdir())
    assert Store.open("cache").digest
