"""SIGKILL at random instants: the same command goes on, and nothing is lost or changed."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import run, start
from reviews_csv import write_csv
from tiny import tiny_bert

EXTRACT_KILLS, TRAIN_KILLS = 50, 20

pytestmark = pytest.mark.slow


def receipts(store: Path) -> int:
    return len(list((store / "sherl" / "receipts").glob("*.json")))


def kill_when(ready: Callable[[], bool], random_: random.Random, *words: object) -> bool:
    """Start a command and SIGKILL it a random moment after `ready`; False when it ended first."""
    process = start(*words)
    try:
        while process.poll() is None:
            if ready():
                time.sleep(random_.uniform(0, 0.05))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        process.communicate()
    finally:
        process.kill()
    return process.returncode == -signal.SIGKILL


def test_killed_extraction_ends_in_the_digest_of_the_unbroken_one(tmp_path: Path, capsys) -> None:
    """50 kills between the first receipt and the end, at least 40 of which leave a partial store."""
    model = tiny_bert(tmp_path / "model", num_hidden_layers=4)
    data = write_csv(tmp_path / "train.csv", 1500)
    validation = write_csv(tmp_path / "validation.csv", 200, seed=1)
    command = ("extract", "--model", model, "--data", data, "--validation", validation)
    command = (*command, "--unit-memory", "200KiB", "--set", "extract.chunk_bytes=4KiB")
    whole = run(*command, "--store", tmp_path / "whole")
    units = receipts(tmp_path / "whole")
    assert units >= 40
    random_ = random.Random(0)
    store, found, finished = tmp_path / "store", [], 0
    kills = 0
    while kills < EXTRACT_KILLS:
        goal = receipts(store) + random_.randint(1, units // 6)
        if goal < units and kill_when(lambda goal=goal: receipts(store) >= goal, random_, *command, "--store", store):
            kills += 1
            found.append(receipts(store))
        else:
            assert run(*command, "--store", store)["digest"] == whole["digest"]
            finished += 1
            shutil.rmtree(store)
    assert run(*command, "--store", store)["digest"] == whole["digest"]
    partial = [count for count in found if 0 < count < units]
    with capsys.disabled():
        print(f"\n{kills} kills, {units} units, {finished + 1} stores finished; receipts at each kill: {found}")
    assert len(partial) >= 40


def test_killed_training_ends_in_the_weights_of_the_unbroken_run(tmp_path: Path, capsys) -> None:
    """20 kills during training; final weights and scores equal those of the run that was never killed."""
    model = tiny_bert(tmp_path / "model", num_hidden_layers=4)
    data = write_csv(tmp_path / "train.csv", 800)
    validation = write_csv(tmp_path / "validation.csv", 200, seed=1)
    store = tmp_path / "store"
    run("extract", "--model", model, "--data", data, "--validation", validation, "--store", store)
    settings = ("--epochs", 4, "--set", "train.checkpoint_steps=5", "--set", "data.batch_examples=16")
    settings = (*settings, "--set", "dropout.head=0.1", "--set", "dropout.late=true")
    command = ("train", "--store", store, *settings)
    whole = run(*command, "--run", tmp_path / "whole")
    random_ = random.Random(1)
    folder, steps, kills = tmp_path / "run", [], 0

    def lines() -> int:
        path = folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    while kills < TRAIN_KILLS:
        goal = lines() + random_.randint(1, whole["steps"] // 6)
        if kill_when(lambda goal=goal: lines() >= goal, random_, *command, "--run", folder):
            kills += 1
            steps.append(lines())
        else:
            assert run(*command, "--run", folder)["weights_digest"] == whole["weights_digest"]
            shutil.rmtree(folder)
    killed = run(*command, "--run", folder)
    with capsys.disabled():
        print(f"\n{kills} kills of {whole['steps']} steps; lines of metrics at each kill: {steps}")
    assert killed["weights_digest"] == whole["weights_digest"]
    assert killed["history"] == whole["history"]
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "run")]
    assert len(logs[0]) == len(logs[1])
