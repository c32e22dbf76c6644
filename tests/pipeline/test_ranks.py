"""`train` as torchrun starts it: one run's folder, the scores of one process, and what several ranks cannot do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from cli import ENVIRONMENT, call
from rank_processes import start_command, start_ranks
from rank_training import run_in_ranks
from reviews_csv import write_csv
from safetensors.torch import load_file
from tiny import tiny_bert

from sherl_cache.pipeline.recipe import load_recipe
from sherl_cache.pipeline.training import Training
from sherl_cache.stages.ranks import Ranks
from sherl_cache.storage import Store
from sherl_cache.storage.errors import RecipeError

SETTINGS = ("--set", "data.batch_examples=16", "--epochs", 2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ranks")
    model = tiny_bert(root / "model")
    files = ("--data", write_csv(root / "train.csv", 97), "--validation", write_csv(root / "dev.csv", 30, seed=1))
    call("extract", "--model", model, *files, "--store", root / "cache", "--encoding", "float32")
    return root / "cache"


def scores(run: Path) -> list[Any]:
    return json.loads((run / "result.json").read_text())["history"]


def test_two_ranks_make_one_run_with_the_scores_of_one_process(store: Path, tmp_path: Path) -> None:
    """head2toe looks at the training split before it begins, and the probe is checked after it ended: rank 0 alone does."""
    for recipe in ("head2toe", "probe"):
        words = ("train", "--store", store, "--config", recipe, *SETTINGS, "--set", "dropout={}")
        lone = call(*words, "--run", tmp_path / f"{recipe}-lone")
        run = tmp_path / f"{recipe}-ranks"
        started = start_command(2, tmp_path / "said", *words, "--run", run, "--json")
        assert started.codes() == [0, 0], started.said()
        printed = started.files[0].read_text()
        assert json.loads(printed[printed.index("{") :])["run"] == str(run)
        assert "{" not in started.files[1].read_text()
        result = json.loads((run / "result.json").read_text())
        assert result["steps"] == lone["steps"]
        assert result["best"] == pytest.approx(lone["best"], abs=1e-6)
        assert result.get("logistic_regression") == lone.get("logistic_regression")
        for mine, other in zip(scores(run), scores(tmp_path / f"{recipe}-lone"), strict=True):
            numbers = [{key: value for key, value in each.items() if key != "metric"} for each in (mine, other)]
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)
        tables = [pq.read_table(folder / "predictions.parquet") for folder in (run, tmp_path / f"{recipe}-lone")]
        likely = [table["probability"].to_numpy() for table in tables]
        assert likely[0] == pytest.approx(likely[1], rel=1e-4)
        assert tables[0].drop_columns("probability") == tables[1].drop_columns("probability")
        weights, expected = (load_file(folder / "best.safetensors") for folder in (run, tmp_path / f"{recipe}-lone"))
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)
        lines = [
            len((folder / "metrics.jsonl").read_text().splitlines()) for folder in (run, tmp_path / f"{recipe}-lone")
        ]
        assert lines[0] == lines[1]
        assert call(*words, "--run", run) == result  # one process finds the run of two finished


def test_a_norm_over_the_batch_is_refused_under_ranks(store: Path) -> None:
    recipe = load_recipe("sherl", ("fusion.projection=batch_norm",))
    opened = Store.open(store)
    Training.of(recipe, opened)
    with pytest.raises(RecipeError, match=r"normalises over the rows of a batch .* 2 ranks sees a slice"):
        Training.of(recipe, opened, Ranks(0, 2))


def test_a_sweep_is_refused_under_ranks(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("LOCAL_RANK", 0), ("MASTER_ADDR", "x"), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    said = call("sweep", "probe", "--store", store, "--runs", tmp_path, "--seeds", "0,1", code=2)
    assert "one process" in said
    assert "rank 0 of 2" in said


# --- a rank that is gone ---


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def wide_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float64, so that runs can be compared after many steps."""
    root = tmp_path_factory.mktemp("wide")
    model = tiny_bert(root / "model")
    files = ("--data", write_csv(root / "train.csv", 97), "--validation", write_csv(root / "dev.csv", 30, seed=1))
    call(
        *("extract", "--model", model, *files, "--store", root / "cache"),
        *("--encoding", "float64", "--precision", "float64"),
    )
    return root / "cache"


LONG = ("train.epochs=20", "train.checkpoint_steps=7")


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "victim", "then"), [(2, 1, 1), (2, 0, 3), (4, 2, 2), (4, 0, 1), (3, 2, 4)])
def test_when_a_rank_is_killed_the_others_name_it_and_other_ranks_end_in_the_same_weights(
    wide_store: Path, tmp_path: Path, ranks: int, victim: int, then: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    started = start_ranks(ranks, tmp_path / "said", run_in_ranks, str(wide_store), str(run), LONG)
    assert started.wait_until(lambda: lines(run) >= 30), started.said()
    begun = time.monotonic()
    os.kill(started.processes[victim].pid, signal.SIGKILL)
    codes = started.codes()
    took = time.monotonic() - begun
    assert codes == [-signal.SIGKILL if rank == victim else 75 for rank in range(ranks)], started.said()
    for rank, path in enumerate(started.files):
        if rank != victim:
            assert f"rank {victim} of {ranks} (process " in path.read_text()
    with capsys.disabled():
        print(f"\n{ranks} ranks, rank {victim} killed after {lines(run)} lines: the others ended in {took:.1f} s")
    assert took < 30
    again = start_ranks(then, tmp_path / "again", run_in_ranks, str(wide_store), str(run), LONG)
    assert again.codes() == [0] * then, again.said()
    lone = start_ranks(1, tmp_path / "alone", run_in_ranks, str(wide_store), str(tmp_path / "lone"), LONG)
    assert lone.codes() == [0], lone.said()
    weights, expected = (load_file(folder / "best.safetensors") for folder in (run, tmp_path / "lone"))
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-9, msg=name)
    assert lines(run) == lines(tmp_path / "lone")


@pytest.mark.slow
def test_torchrun_itself_starts_two_ranks_and_a_killed_one_ends_it(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # without `--` torchrun takes --run for short of its own --run-path
    words = ["-m", "--", "sherl_cache.pipeline", "train", "--store", str(store), "--run", str(run), "--epochs"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**ENVIRONMENT, "PYTHONWARNINGS": "default", "OMP_NUM_THREADS": "1"}
    kept = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*launcher, *words, "400"], **kept)  # type: ignore[call-overload]
    while process.poll() is None and lines(run) < 5:
        time.sleep(0.05)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(workers[-1], signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert "(process " in said
    assert "is gone" in said
    done = lines(run)
    done_process = subprocess.run([*launcher, *words, "400", "--set", "train.patience=1"], **kept, check=False)  # type: ignore[call-overload]
    assert done_process.returncode == 1  # another recipe: refused by rank 0, and the other one ends as well
    assert "holds another run" in done_process.stderr
    assert lines(run) == done
