"""The choice as a pure function of rates; live batches against those of a store; the command on a tiny model."""

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from cli import call
from hypothesis import given
from hypothesis import strategies as some
from reviews_csv import write_csv
from tiny import tiny_bert, tiny_t5

from sherl_cache.pipeline.advice.choice import Costs, Machine, Rates, Work, choose, predict
from sherl_cache.pipeline.advice.disk import PREFIX, measure_disk
from sherl_cache.pipeline.advice.live import LiveBatches
from sherl_cache.pipeline.advice.options import Option, best
from sherl_cache.pipeline.advice.turns import Timer, take_turns
from sherl_cache.pipeline.preparing import extract_settings, preparing
from sherl_cache.pipeline.recipe import Recipe, load_recipe
from sherl_cache.pipeline.training import Recorder, Silent, Training
from sherl_cache.stages.evaluate import evaluate
from sherl_cache.stages.train import TrainingLoop
from sherl_cache.storage import Store
from sherl_cache.storage.errors import InvalidInput

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]["advise"]
NAMES = list(Rates.__dataclass_fields__)
SPEEDS = some.floats(min_value=1e-3, max_value=1e12)
COUNTS = some.integers(min_value=0, max_value=10**9)
FEW = some.integers(min_value=1, max_value=1000)
RATES = some.builds(Rates, **dict.fromkeys(NAMES, SPEEDS))
WORKS = some.builds(Work, **dict.fromkeys(Work.__dataclass_fields__, COUNTS))
SHARES = some.floats(min_value=0, max_value=1)
MACHINES = some.builds(Machine, contention=SHARES, ahead=SHARES)


def way(costs: Costs, epochs: int, runs: int) -> str:
    return choose(costs, epochs, runs, room=True, live_fits=True).way


@given(RATES, WORKS, MACHINES, FEW, FEW, FEW)
def test_more_epochs_or_runs_never_turn_the_choice_away_from_the_cache(
    rates: Rates, work: Work, machine: Machine, epochs: int, more: int, runs: int
) -> None:
    costs = predict(rates, work, machine)
    if costs.cached(epochs, runs) < costs.live(epochs, runs) * (1 - 1e-9):  # clearly: sums of floats round
        assert way(costs, epochs + more, runs) == "cache"
        assert way(costs, epochs, runs + more) == "cache"


@given(
    RATES,
    WORKS,
    MACHINES,
    FEW,
    FEW,
    some.floats(min_value=0.01, max_value=1),
    some.sampled_from(["cold", "write", "files"]),
)
def test_a_slower_disk_never_favours_the_cache(
    rates: Rates, work: Work, machine: Machine, epochs: int, runs: int, share: float, what: str
) -> None:
    slower = predict(replace(rates, **{what: getattr(rates, what) * share}), work, machine)
    costs = predict(rates, work, machine)
    assert slower.cached(epochs, runs) >= costs.cached(epochs, runs) * (1 - 1e-12)
    assert slower.live(epochs, runs) == costs.live(epochs, runs)


@given(RATES, WORKS, MACHINES, FEW)
def test_caching_pays_from_the_epochs_on_that_are_told(rates: Rates, work: Work, machine: Machine, runs: int) -> None:
    costs = predict(rates, work, machine)
    pays = costs.break_even_epochs(runs)
    if pays is None:
        assert costs.cached(10**6, runs) > costs.live(10**6, runs) * (1 - 1e-9)
    else:
        assert costs.cached(pays, runs) <= costs.live(pays, runs) * (1 + 1e-9)
        assert pays == 1 or costs.cached(pays - 1, runs) >= costs.live(pays - 1, runs) * (1 - 1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_rate_that_cannot_be_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=rf"rate {name} is .*above 0 is needed"):
        Rates(**{**dict.fromkeys(NAMES, 1.0), name: value})


def test_what_is_not_possible_is_not_chosen_however_quick() -> None:
    cheap, dear = Costs(1, 1, 1, 1, 1000), Costs(1000, 1000, 1000, 1000, 1)
    assert choose(cheap, 4, 1, room=False, live_fits=True).way == "recompute"
    assert choose(dear, 4, 1, room=True, live_fits=False).way == "cache"
    assert choose(cheap, 4, 1, room=False, live_fits=False).way == "neither"


def test_seconds_by_hand() -> None:
    """10,000 tokens, 4,000 bytes in two units; what is encoded takes half of its time from the forward."""
    rates = Rates(
        **{**dict.fromkeys(NAMES, float("inf")), "files": 2, "forward": 1000, "encode": 1000, "write": 500, "cold": 100}
    )
    rates = replace(rates, warm=1000, cached_step=50, live_step=10, cached_validation=100, live_validation=20)
    work = Work(
        tokens=10_000,
        store_bytes=4000,
        unit_files=0,
        other_files=6,
        units=2,
        train_examples=100,
        train_bytes=1000,
        validation_examples=100,
        validation_bytes=0,
        block_bytes=200,
    )
    machine = Machine(contention=0.5, ahead=1.0, stays=False, page_cache=True)
    costs = predict(rates, work, machine)
    assert costs.extract == pytest.approx(
        10 + 0.5 * 4 + 8 / 2 + 3
    )  # forward, encoding beside it, the last unit, other files
    assert costs.first_epoch == pytest.approx(2 + 8 + 1)  # a block, the rest beside 2 s of steps, validation
    assert costs.epoch == pytest.approx(0.2 + (2 + 0.5 * 0.8) + 1)
    assert costs.live_epoch == pytest.approx(10 + 5)
    kept = predict(rates, work, replace(machine, stays=True))
    assert (kept.first_epoch, kept.epoch) == (costs.first_epoch, pytest.approx(3))
    alone = predict(rates, work, replace(machine, ahead=0.0))
    assert alone.first_epoch == pytest.approx(2 + 10 + 1)


def option(encoding: str, taps: int, seconds: float, *, fits: bool = True, holds: bool = True) -> Option:
    machine = Machine(contention=0, ahead=1, stays=True, page_cache=True)
    return Option(encoding, {"encoder": tuple(range(taps))}, 1, holds, fits, machine, Costs(seconds, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([("bfloat16", 3, 95.0)], ("bfloat16", 7)),  # hardly quicker
        ([("bfloat16", 3, 80.0), ("bfloat16+zstd:1", 3, 79.0)], ("bfloat16", 3)),
        ([("int8", 3, 10.0)], ("bfloat16", 7)),  # rounds in another way
    ],
)
def test_the_store_that_was_asked_for_stays_the_choice_unless_its_own_kind_is_clearly_quicker(
    others: list[tuple[str, int, float]], expected: tuple[str, int]
) -> None:
    found = best([option("bfloat16", 7, 100.0), *(option(*other) for other in others)], load_recipe(None), 1, 1)
    assert (found.encoding, len(found.taps["encoder"])) == expected


def test_another_encoding_is_chosen_where_nothing_else_fits() -> None:
    recipe = load_recipe(None)
    large = [option("bfloat16", taps, 1.0, fits=False) for taps in (7, 3)]
    broken = option("float16", 7, 1.0, holds=False)
    assert best([*large, broken, option("int8", 7, 9.0)], recipe, 1, 1).encoding == "int8"
    fewer = [large[0], option("bfloat16", 3, 1.0)]
    assert best(fewer, recipe, 1, 1) is fewer[1]
    assert (
        best(fewer, load_recipe(None, ("extract.taps=every:1",)), 1, 1) is fewer[0]
    )  # asked for, though it does not fit


def test_turns_are_taken_as_often_as_they_must_be() -> None:
    calls = {"one": 0, "two": 0}

    def counted(name: str) -> tuple[int, int]:
        calls[name] += 1
        return 5, 5

    one, two = Timer(lambda: counted("one"), warm_up=2, least=3), Timer(lambda: counted("two"), warm_up=0, least=1)
    take_turns([one, two], 0.0)
    assert calls == {"one": 5, "two": 1}
    assert one.spent * one.rate > 0
    assert two.rate == pytest.approx(5 / two.spent)


# ------------------------------------------------------------------------------------------------------------ live batches


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (tiny_bert, ()),
        (tiny_t5, ("train.micro_batch_examples=3",)),
        (tiny_bert, ("data.batch_tokens=200", "data.batch_examples=null", "data.window=1")),
    ],
    ids=["encoder", "encoder-decoder", "by tokens"],
)
def test_live_training_is_training_from_a_float32_store(
    make: Callable[[Path], Path], settings: tuple[str, ...], tmp_path: Path
) -> None:
    """The same losses, step after step, and the same validation, though no state is read."""
    flags: dict[str, Any] = {"extract.text_columns": ("text",), "extract.label_column": "label"}
    flags |= {"extract.encoding": "float32", "extract.splits": "holdout:9", "train.epochs": 2}
    flags |= {"extract.model": str(make(tmp_path / "model")), "extract.data": str(write_csv(tmp_path / "a.csv", 40))}
    chunks = "extract.chunk_bytes=1KiB"
    recipe = load_recipe("sherl", ("data.batch_examples=8", chunks, *settings), **flags)
    call("extract", *_words(recipe), "--set", chunks, "--store", tmp_path / "cache")
    stored, alive = (Training.of(recipe, Store.open(tmp_path / "cache")) for _ in range(2))
    assert alive.validation is not None
    with preparing(extract_settings(recipe), "cpu", tmp_path / "none") as prepared:
        train, held_out = (
            LiveBatches(batches, prepared.loaded, prepared.batches) for batches in (alive.batches, alive.validation)
        )
        loop = TrainingLoop(alive.model, alive.objective, train, alive.loop.settings)
        live = replace(alive, batches=train, validation=held_out, loop=loop)
        found, expected = _history(live), _history(stored)
    assert [step["examples"] for step in found] == [step["examples"] for step in expected]
    assert [step["tokens"] for step in found] == [step["tokens"] for step in expected]
    torch.testing.assert_close([s["loss"] for s in found], [s["loss"] for s in expected], rtol=1e-4, atol=1e-4)
    assert len(found) == stored.loop.total_steps > 2
    for epoch, other in zip(live.loop.at.history, stored.loop.at.history, strict=True):
        assert epoch == pytest.approx(other, abs=1e-4)
    assert alive.batches.stream.read_bytes == 0 < stored.batches.stream.read_bytes


def _history(training: Training) -> list[dict[str, Any]]:
    """Train to the end; the record of each step."""
    records: list[dict[str, Any]] = []

    class Listening(Recorder):
        def log(self, record: Any) -> None:
            records.append(dict(record))

    training.loop.run(Listening(None, Silent()), lambda: training.keep(None, evaluate(training.evaluator())))
    return [record for record in records if "loss" in record]


def _words(recipe: Recipe) -> list[str]:
    extract = recipe.extract
    return [
        *("--model", str(extract.model), "--data", str(extract.data), "--encoding", extract.encoding),
        *("--text-column", "text", "--label-column", "label", "--splits", extract.splits),
    ]


# --------------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("make", "asked"),
    [(tiny_bert, "bfloat16"), (lambda folder: tiny_t5(folder, d_model=96), "int8")],
    ids=["encoder", "encoder-decoder, int8"],
)
def test_advice_on_a_tiny_model(
    make: Callable[[Path], Path], asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every figure is there, the store that its command makes has the size that was told, and nothing is left behind."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    data, model = write_csv(tmp_path / "train.csv", 120), make(tmp_path / "model")
    before = sorted(path.name for path in tmp_path.iterdir())
    words = (
        "--model",
        model,
        "--data",
        data,
        "--splits",
        "holdout:20",
        "--store",
        tmp_path / "cache",
        "--encoding",
        asked,
    )
    advice = call("advise", *words, "--seconds", 0.2, "--epochs", 3, "--runs", 2)
    jsonschema.validate(advice, SCHEMA)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert list(scratch.iterdir()) == []
    seconds = advice["seconds"]
    assert advice["way"] == ("cache" if seconds["cached"] < seconds["recomputed"] else "recompute")
    assert seconds["recomputed"] == pytest.approx(2 * 3 * seconds["live_epoch"])
    assert seconds["cached"] >= seconds["extract"] + 2 * 2 * seconds["epoch"]
    encodings = [option["encoding"] for option in advice["options"]]
    assert set(encodings) == {asked, f"{asked}+zstd:1", "bfloat16", "int8", "float16"}
    (chosen,) = (option for option in advice["options"] if option["chosen"])
    assert all(chosen[key] == advice[key] for key in ("encoding", "taps", "bytes"))
    program, *command = advice["command"].split()
    assert program == "sherl-cache"
    call(*command)
    written = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert advice["bytes"] == pytest.approx(written, rel=0.06)


def test_a_recipe_whose_taps_are_left_out_is_refused_with_those_it_reads(tmp_path: Path) -> None:
    data, model = write_csv(tmp_path / "train.csv", 40), tiny_bert(tmp_path / "model")
    said = call("advise", "--model", model, "--data", data, "--taps", "0", "--store", tmp_path / "cache", code=3)
    assert "which --taps 0 leaves out" in said
    assert "All that it reads: encoder:" in said


def test_a_model_that_is_streamed_is_told_to_be_cached(tmp_path: Path) -> None:
    said = call("advise", "--model", tmp_path, "--data", tmp_path, "--stream-weights", code=2)
    assert "plan --stream-weights" in said


def test_ctrl_c_leaves_nothing_beside_the_store(tmp_path: Path) -> None:
    """It comes while the disk is being written to."""
    seen = threading.Event()

    def interrupt() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if any(path.name.startswith(PREFIX) for path in tmp_path.iterdir()):
                seen.set()
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        measure_disk(tmp_path / "cache", 30.0, 1)
    watcher.join()
    assert seen.is_set()
    assert list(tmp_path.iterdir()) == []
