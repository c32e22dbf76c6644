"""SIGTERM and SIGUSR1: a command ends with 75 within one batch, whole things are kept, and the same command goes on."""

import hashlib
import importlib
import json
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pydantic
import pydantic_core
import pytest
from cli import call
from rank_processes import Ranks, start_command
from reviews_csv import write_csv
from tiny import tiny_bert

from sherl_cache.pipeline import stopping
from sherl_cache.pipeline.cli import CommandFolder, main

SETTINGS = ("--set", "data.batch_examples=16", "--set", "dropout.head=0.1")
TRAIN = (*SETTINGS, "--epochs", 40, "--set", "train.checkpoint_steps=50")


@pytest.fixture
def listening() -> Iterator[None]:
    """Signals heeded in this process as a command's own heeds them."""
    numbers = (*stopping.SIGNALS, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    stopping.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    stopping._state.signal, stopping._state.deferrals = None, 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("stopping")
    model = tiny_bert(root / "model")
    data, validation = write_csv(root / "train.csv", 90), write_csv(root / "dev.csv", 300, seed=1)
    call("extract", "--model", model, "--data", data, "--validation", validation, "--store", root / "cache")
    return root


@contextmanager
def signalled(ready: Callable[[], bool], *numbers: signal.Signals, pause: float = 0.0) -> Iterator[None]:
    """Signals to this process once `ready`, from a thread."""
    ended = threading.Event()

    def send() -> None:
        while not ready():
            if ended.wait(0.0005):
                return
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(pause)

    thread = threading.Thread(target=send)
    thread.start()
    yield
    ended.set()
    thread.join()


def lines(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def send(number: signal.Signals, seconds: float = 0.05) -> None:
    """A signal to this process, and some bytecode on which it can be heeded."""
    os.kill(os.getpid(), number)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@pytest.mark.usefixtures("listening")
def test_a_signal_raises_at_once_and_a_burst_is_one() -> None:
    with pytest.raises(stopping.Stopped):
        send(signal.SIGUSR1, 5)
    assert stopping.asked() == signal.SIGUSR1
    send(signal.SIGTERM)
    assert stopping.asked() == signal.SIGUSR1
    with pytest.raises(stopping.Stopped):
        stopping.heed()


@pytest.mark.usefixtures("listening")
def test_a_deferred_signal_raises_at_the_end_unless_there_is_an_error() -> None:
    reached = []

    def work() -> None:
        with stopping.deferred():
            with stopping.deferred():
                send(signal.SIGTERM)
                stopping.heed()
            reached.append(stopping.asked())

    with pytest.raises(stopping.Stopped):
        work()
    assert reached == [signal.SIGTERM]
    with pytest.raises(ZeroDivisionError), stopping.deferred():
        print(1 / 0)


@pytest.mark.usefixtures("listening")
def test_an_import_is_not_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = (
        "import os, signal, time",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "until = time.monotonic() + 0.2",
        "while time.monotonic() < until: pass",
        "whole = 1",
    )
    (tmp_path / "interrupted_module.py").write_text("\n".join(lines))

    def work() -> None:
        importlib.import_module("interrupted_module")
        time.sleep(5)

    with pytest.raises(stopping.Stopped):
        work()
    assert sys.modules.pop("interrupted_module").whole == 1


@pytest.mark.usefixtures("listening")
def test_a_signal_that_a_library_made_an_error_of_is_still_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """pydantic raises PydanticSerializationError for whatever a serializer raises, and names no cause."""

    class Saved(pydantic.BaseModel):
        @pydantic.model_serializer
        def interrupted(self) -> dict[str, str]:
            send(signal.SIGUSR1, 5)
            return {}

    command = click.Command("info", callback=lambda: Saved().model_dump_json())
    with pytest.raises(pydantic_core.PydanticSerializationError):
        Saved().model_dump_json()
    stopping.listen()
    monkeypatch.setattr(CommandFolder, "get_command", lambda *_: command)
    assert main(["info"]) == 75


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_stopped_extraction_keeps_every_whole_unit_and_goes_on(
    place: Path, tmp_path: Path, number: signal.Signals
) -> None:
    small = ("--unit-memory", "40KiB", "--set", "extract.chunk_bytes=4KiB", "--batch-tokens", 64)
    words = ("extract", "--model", place / "model", "--data", place / "dev.csv", *small, "--store")
    receipts = tmp_path / "store" / "sherl" / "receipts"
    with signalled(lambda: len(list(receipts.glob("*.json"))) >= 3, number):
        said = call(*words, tmp_path / "store", code=75)
    assert (
        f"stopped by {number.name}. What was committed is kept; the same command goes on from there: sherl-cache"
        in said
    )
    found = len(list(receipts.glob("*.json")))
    assert found >= 3
    assert not list((tmp_path / "store").rglob("*.tmp"))
    stopping.listen()
    digest = call(*words, tmp_path / "store")["digest"]
    assert len(list(receipts.glob("*.json"))) > found
    assert digest == call(*words, tmp_path / "whole")["digest"]


@pytest.mark.usefixtures("listening")
def test_a_stopped_training_saves_the_step_at_hand_and_goes_on(place: Path, tmp_path: Path) -> None:
    """In a step, then in a validation; no step is taken twice."""
    words = ("train", "--store", place / "cache", *SETTINGS, "--epochs", 4, "--run")
    run = tmp_path / "run"
    with signalled(lambda: len(lines(run)) >= 3, signal.SIGTERM):
        said = call(*words, run, code=75)
    steps = len(lines(run))
    assert f"step {steps} of 24 is saved" in said
    stopping.listen()
    with signalled(lambda: [line for line in lines(run) if "loss" in line][-1]["step"] == 12, signal.SIGUSR1):
        said = call(*words, run, code=75)
    assert "validation was asked to end; step 12 of 24 is saved" in said or "step 13 of 24 is saved" in said
    kept = (run / "metrics.jsonl").read_bytes()
    stopping.listen()
    result = call(*words, run)
    assert (run / "metrics.jsonl").read_bytes().startswith(kept)
    whole = call(*words, tmp_path / "whole")
    assert result["weights_digest"] == whole["weights_digest"]
    assert result["history"] == whole["history"]


@pytest.mark.usefixtures("listening")
def test_a_stopped_sweep_saves_every_run_where_it_stands(place: Path, tmp_path: Path) -> None:
    words = (
        "sweep",
        "probe",
        "--store",
        place / "cache",
        *SETTINGS,
        "--set",
        "train.epochs=3",
        "--seeds",
        "0,1",
        "--runs",
    )
    folders = lambda: list((tmp_path / "runs").glob("probe-*"))  # noqa: E731
    with signalled(lambda: len(folders()) == 2 and all(len(lines(run)) >= 4 for run in folders()), signal.SIGTERM):
        said = call(*words, tmp_path / "runs", code=75)
    assert "saved where they stand" in said
    kept = {run: (run / "metrics.jsonl").read_bytes() for run in folders()}
    stopping.listen()
    table = call(*words, tmp_path / "runs")
    for run, before in kept.items():
        assert (run / "metrics.jsonl").read_bytes().startswith(before)
    whole = call(*words, tmp_path / "whole")
    assert [row["weights_digest"] for row in table["runs"]] == [row["weights_digest"] for row in whole["runs"]]


def test_a_signal_to_one_rank_stops_both_after_the_same_step(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("train", "--store", place / "cache", *TRAIN, "--run", run)
    started = start_command(2, tmp_path / "said", *words)
    assert started.wait_until(lambda: len(lines(run)) >= 8), started.said()
    started.signal(signal.SIGUSR1, but=0)
    assert started.codes() == [75, 75], started.said()
    steps = lines(run)[-1]["step"]
    for rank, path in enumerate(started.files):
        assert f"rank {rank} of 2: training was asked to end; step {steps} of 240 is saved." in path.read_text()
    assert [path.name for path in (run / "checkpoints").iterdir()][-1].startswith("step-")


# --- every phase, by processes ---


def heeds(started: Ranks) -> bool:
    """Whether every process has installed its handlers, as the system tells."""
    wanted = sum(1 << (number - 1) for number in stopping.SIGNALS)
    for process in started.processes:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        if int(caught.split()[1], 16) & wanted != wanted:
            return False
    return True


def newest(run: Path) -> dict[str, Any]:
    found = lines(run)
    return found[-1] if found else {}


PHASES: dict[str, Callable[[Ranks, Path], bool]] = {
    "load": lambda started, run: heeds(started),
    "extract": lambda started, run: len(list((run / "sherl" / "receipts").glob("*.json"))) >= 2,
    "train": lambda started, run: newest(run).get("step", 0) >= 9,
    "eval": lambda started, run: newest(run).get("step", 0) == 12 and "loss" in newest(run),
    "save": lambda started, run: len(lines(run)) >= 7 and any((run / "checkpoints").glob(".*.tmp")),
}


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], str]:
    """Digest of what a command makes that nobody stops: of a store, or of weights by a number of ranks."""
    root, known = tmp_path_factory.mktemp("whole"), {}

    def digest(phase: str, ranks: int) -> str:
        key = ("extract", 1) if phase == "extract" else ("save" if phase == "save" else "train", ranks)
        if key not in known:
            target = root / f"{key[0]}-{ranks}"
            started = start_command(key[1], root / f"said-{key[0]}-{ranks}", *phase_words(place, phase, target))
            assert set(started.codes()) == {0}, started.said()
            known[key] = found_digest(phase, target)
        return known[key]

    return digest


def phase_words(place: Path, phase: str, target: Path) -> tuple[object, ...]:
    if phase == "extract":
        small = ("--unit-memory", "40KiB", "--set", "extract.chunk_bytes=4KiB", "--batch-tokens", 64)
        return ("extract", "--model", place / "model", "--data", place / "dev.csv", *small, "--store", target)
    every = 1 if phase == "save" else 50
    epochs = ("--epochs", 6, "--set", f"train.checkpoint_steps={every}")
    return ("train", "--store", place / "cache", *SETTINGS, *epochs, "--run", target)


def found_digest(phase: str, target: Path) -> str:
    if phase == "extract":
        return call("info", "--store", target)["digest"]
    return json.loads((target / "result.json").read_text())["weights_digest"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("number", stopping.SIGNALS)
@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_stops_with_75_and_the_same_command_goes_on(
    place: Path, tmp_path: Path, whole: Any, phase: str, number: signal.Signals, ranks: int
) -> None:
    """`eval` is the validation of a training; several processes of `extract` share one store."""
    target = tmp_path / "made"
    words = phase_words(place, phase, target)
    started = start_command(ranks, tmp_path / "first", *words)
    assert started.wait_until(lambda: PHASES[phase](started, target)), started.said()
    begun = time.monotonic()
    started.signal(number)
    assert started.codes() == [75] * ranks, started.said()
    assert time.monotonic() - begun < 60
    assert "Traceback" not in started.said()
    for path in started.files:
        assert "the same command goes on from there: sherl-cache" in path.read_text()
    again = start_command(ranks, tmp_path / "second", *words)
    assert again.codes() == [0] * ranks, again.said()
    assert found_digest(phase, target) == whole(phase, ranks)


@pytest.mark.slow
@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_stopped_eval_command_starts_again(place: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    call("train", "--store", place / "cache", *SETTINGS, "--epochs", 1, "--run", run)
    expected = call("eval", "--run", run, "--batch-examples", 1)
    started = start_command(1, tmp_path / "said", "eval", "--run", run, "--batch-examples", 1)
    assert started.wait_until(lambda: heeds(started))
    time.sleep(0.3)
    started.signal(number)
    assert started.codes() == [75], started.said()
    assert call("eval", "--run", run, "--batch-examples", 1)["value"] == expected["value"]


@pytest.mark.slow
@pytest.mark.usefixtures("listening")
def test_two_signals_in_a_row_tear_no_save(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """100 times, at any instant of a save; each time the run goes on from the step that it said was saved."""
    every = ("--set", "train.checkpoint_steps=1")
    words = ("train", "--store", place / "cache", *SETTINGS, "--epochs", 60, *every, "--run")
    run, draw, saved, inside = tmp_path / "run", random.Random(0), 0, 0
    for attempt in range(100):
        stopping.listen()
        first, second = draw.choice(stopping.SIGNALS), draw.choice(stopping.SIGNALS)
        least, delay = saved + draw.randint(1, 2), draw.uniform(0, 0.004)

        def saving(least: int = least, delay: float = delay) -> bool:
            if not any(int(path.name.split("-")[1]) >= least for path in (run / "checkpoints").glob(".step-*.tmp")):
                return False
            time.sleep(delay)
            return True

        with signalled(saving, first, second, pause=draw.uniform(0, 0.004)):
            said = call(*words, run, code=75)
        step = int(re.findall(r"; step (\d+) of", said)[0])
        assert step >= least
        inside += step == least  # asked during that very save, or before the next step
        saved = step
        folders = list((run / "checkpoints").iterdir())
        assert not [path for path in folders if path.name.startswith(".")], attempt
        for folder in folders:
            state = json.loads((folder / "state.json").read_text())
            for name, digest in state["sha256"].items():
                assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        assert any(int(folder.name.split("-")[1]) == step for folder in folders)
    stopping.listen()
    result = call(*words, run)
    with capsys.disabled():
        print(f"\n100 pairs of signals, {inside} of them before the step after that save; 0 torn, {saved} steps of 360")
    assert result["weights_digest"] == call(*words, tmp_path / "whole")["weights_digest"]
