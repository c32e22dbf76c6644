"""Trackers hold what metrics.jsonl holds, each point once, whatever stopped the run; and no word of the environment."""

import importlib.util
import json
import math
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bert

from sherl_cache.pipeline import reporting
from sherl_cache.pipeline.redaction import without_secrets
from sherl_cache.pipeline.run import Run
from sherl_cache.pipeline.trackers.contract import flat, points

CANARIES = {
    "HF_TOKEN": "hf_canaryCanaryCanary",
    "AWS_SECRET_ACCESS_KEY": "awscanary/Canary+Canary",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-canary-canary",
}
Points = Counter[tuple[str, int, float]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trackers")
    tiny_bert(folder / "model")
    write_csv(folder / "train.csv", 64)
    data = ("--data", folder / "train.csv", "--splits", "holdout:16")
    call("extract", "--model", folder / "model", *data, "--store", folder / "cache")
    return folder / "cache"


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)


def in_tensorboard(run: Path) -> Points:
    """Every scalar of every event file, none hidden."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    found: Points = Counter()
    for path in sorted((run / "tensorboard").glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    found[value.tag, event.step, float(make_ndarray(value.tensor))] += 1
    return found


def in_mlflow(run: Path) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run.parent / 'mlflow.db'}")
    identity = json.loads((run / "mlflow.json").read_text())["id"]
    found: Points = Counter()
    for name in client.get_run(identity).data.metrics:
        for metric in client.get_metric_history(identity, name):
            found[name, metric.step, metric.value] += 1
    return found


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a log in LevelDB's form behind a header of 7 bytes: blocks of 32 KiB, pieces of crc, length, kind, bytes."""
    offset, record = 7, b""
    while offset + 7 <= len(data):
        left = 32768 - offset % 32768
        if left < 7:
            offset += left
            continue
        length, kind = struct.unpack_from("<HB", data, offset + 4)
        record += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # whole, or the last of several pieces
            yield record
            record = b""


def in_wandb(run: Path) -> Points:
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its service writes the last points when it ends
    found: Points = Counter()
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for data in log_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            step = record.history.step.num
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if name.partition("/")[0] in ("train", "validation"):
                    found[name, step, float(json.loads(item.value_json))] += 1
    return found


READERS: dict[str, Callable[[Path], Points]] = {"tensorboard": in_tensorboard, "mlflow": in_mlflow, "wandb": in_wandb}


def here(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


every_tracker = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(not here(name), reason=f"{name} is not installed"))
        for name in reporting.tracker_names()
    ],
)


def told(run: Path) -> Points:
    """What trackers should hold, from metrics.jsonl alone."""
    found: Points = Counter()
    for line in (run / "metrics.jsonl").read_text().splitlines():
        _, step, values = points(json.loads(line))
        for name, value in values.items():
            found[name, step, value] += 1
    return found


def assert_same(held: Points, run: Path) -> None:
    """TensorBoard keeps float32. What a step took may be that of a first try, which a kill undid."""
    expected = {(name, step): value for name, step, value in told(run)}
    assert len(expected) > 100
    times = Counter((name, step) for name, step, value in held.elements())
    assert set(times.values()) == {1}, "a point is there twice"
    assert set(times) == set(expected)
    for name, step, value in held:
        if not name.startswith(("train/seconds", "train/memory")):
            assert math.isclose(value, expected[name, step], rel_tol=1e-6, abs_tol=1e-30), (name, step)


def files_below(folder: Path) -> Iterator[bytes]:
    return (path.read_bytes() for path in folder.rglob("*") if path.is_file())


class Killed(BaseException):
    """What a kill is to the training: nothing after it runs."""


@every_tracker
def test_a_tracker_holds_every_point_once_after_a_kill(
    name: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", "--store", store, "--run", tmp_path / "run", "--epochs", 3, "--report-to", name)
    words += ("--set", "data.batch_examples=8", "--set", "train.checkpoint_steps=4")
    log = Run.log

    def killed_at_11(self: Run, record: dict[str, Any]) -> None:
        log(self, record)
        if record["step"] == 11:  # the newest checkpoint is of step 8
            raise Killed

    monkeypatch.setattr(Run, "log", killed_at_11)
    with pytest.raises(Killed):
        call(*words)
    monkeypatch.setattr(Run, "log", log)
    result = call(*words)
    assert result["steps"] == 18
    assert_same(READERS[name](tmp_path / "run"), tmp_path / "run")
    call(*words)  # finished: nothing is told twice
    assert_same(READERS[name](tmp_path / "run"), tmp_path / "run")
    for data in files_below(tmp_path):
        assert not [key for key, value in CANARIES.items() if value.encode() in data]


@every_tracker
def test_a_run_that_was_not_tracked_is_told_whole_later(name: str, store: Path, tmp_path: Path) -> None:
    words = ("train", "--store", store, "--run", tmp_path / "run", "--epochs", 2, "--set", "data.batch_examples=8")
    plain = call(*words)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert call(*words, "--report-to", name)["weights_digest"] == plain["weights_digest"]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert_same(READERS[name](tmp_path / "run"), tmp_path / "run")


@every_tracker
def test_each_run_of_a_sweep_is_told_by_itself(name: str, store: Path, tmp_path: Path) -> None:
    """The second time both are finished, one of them is not tracked yet, and nothing is told twice."""
    words = ("sweep", "probe", "--store", store, "--runs", tmp_path / "runs", "--epochs", 3)
    words += ("--set", "data.batch_examples=8")
    first = call(*words, "--seeds", "0,1", "--report-to", name)["runs"]
    runs = [Path(row["run"]) for row in first]
    for run in runs:
        assert_same(READERS[name](run), run)
    (added,) = (Path(row["run"]) for row in call(*words, "--seeds", "2")["runs"])
    call(*words, "--seeds", "0,1,2", "--report-to", name)
    for run in (*runs, added):
        assert_same(READERS[name](run), run)


def test_a_tracker_that_fails_is_left_out_and_training_ends(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder is a file. The numbers are those of a run without any."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("mine")
    words = ("--epochs", 1, "--set", "data.batch_examples=8")
    from sherl_cache.pipeline.cli import main

    arguments = ["train", "--store", store, "--run", tmp_path / "run", *words, "--report-to", "tensorboard"]
    assert main([*map(str, arguments)]) == 0
    assert capsys.readouterr().err.count("warning: tensorboard is told nothing from here on") == 1
    assert (tmp_path / "run" / "tensorboard").read_text() == "mine"
    alone = call("train", "--store", store, "--run", tmp_path / "alone", *words)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["weights_digest"] == alone["weights_digest"]


def test_a_tracker_that_is_not_there_is_named_before_there_is_a_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", "--store", store, "--run", tmp_path / "run", "--report-to")
    assert "no such tracker (did you mean tensorboard?)" in call(*words, "tensorbord", code=2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # a folder that is called so is no package
    for name in reporting.tracker_names():
        if not here(name):
            said = call(*words, f"tensorboard,{name}", code=2)
            assert f"pip install 'sherl-cache[{name}]'" in said
    assert not (tmp_path / "run").exists()


def test_trackers_are_imported_only_when_they_are_asked_for() -> None:
    names = reporting.chosen_trackers(["tensorboard,tensorboard", "tensorboard"])
    assert names == ("tensorboard",)
    assert reporting.chosen_trackers([]) == ()


def test_points_are_every_finite_number_by_the_way_to_it() -> None:
    record = {"step": 3, "epoch": 0, "loss": 0.5, "seconds": {"read": 1}, "layer_weights": {"encoder": [0.25, 0.75]}}
    record |= {"gradient_norm": None, "note": "text", "worst": math.inf, "flag": True}
    assert points(record) == (
        "train",
        3,
        {
            "train/epoch": 0.0,
            "train/loss": 0.5,
            "train/seconds/read": 1.0,
            "train/layer_weights/encoder/00": 0.25,
            "train/layer_weights/encoder/01": 0.75,
        },
    )
    found = {"step": 3, "validation": {"metric": "accuracy", "value": 0.5, "loss": 1.0}}
    assert points(found) == ("validation", 3, {"validation/accuracy": 0.5, "validation/loss": 1.0})
    assert flat({"a": {"b": [1, 2]}, "c": None}) == {"a.b": "[1, 2]", "c": None}


def test_a_warning_holds_no_secret_of_the_environment() -> None:
    said = without_secrets(f"401 for key {CANARIES['WANDB_API_KEY']} and {CANARIES['HF_TOKEN']}")
    assert said == "401 for key *** and ***"


def test_the_rest_of_a_run_is_as_it_was(store: Path, tmp_path: Path) -> None:
    """A tracker changes nothing of what a run is: its folder's name, its recipe, its facts."""
    words = ("train", "--store", store, "--epochs", 1)
    call(*words, "--run", tmp_path / "one")
    call(*words, "--run", tmp_path / "two", "--report-to", "tensorboard")
    for file in ("recipe.yaml", "run.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    shutil.rmtree(tmp_path / "two" / "tensorboard")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {path.name for path in (tmp_path / "two").iterdir()}
