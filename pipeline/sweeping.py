"""A sweep: several recipes over one store, trained side by side from one read, each in a run's folder of its own."""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from ..stages.data import allocator
from ..stages.environment import machine
from ..stages.side_by_side import SharedBatches, Side, train_side_by_side
from ..storage import ReadBuffers, Store, commit, keys
from ..storage.errors import RecipeError
from ..storage.printable import printable
from . import stopping
from .grid import require_one_read
from .memory import peak_memory_bytes
from .progress import progress
from .reading import reading_line
from .reporting import reporting
from .run import Run
from .training import Parts, Recorder, Training, open_streams

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ..storage import Stream
    from .grid import Variant
    from .recipe_sections import Data


def run_sweep(variants: Sequence[Variant], store: Store, folder: Path, trackers: Sequence[str] = ()) -> dict[str, Any]:
    """Train what is not finished yet, each from its own newest checkpoint; the table of all, which is also written to
    `<folder>/sweep-<hash>.json`. trackers: told of every run by itself, also of those that are finished.

    A run's folder is the one that `train` would use: either finds what the other began. Raises RecipeError where the
    recipes cannot share a read or two are the same run, BudgetTooSmall for all that they read together.
    """
    require_one_read(variants)
    begun = time.monotonic()
    facts = {"store_fingerprint": store.fingerprint, "producer": store.producer}
    places = _places(variants, store, folder)
    known = {name: Run.find(folder / name, variant.recipe, facts) for name, variant in places.items()}
    results = {name: run.result() for name, run in known.items() if run is not None}
    left = {name: variant for name, variant in places.items() if results.get(name) is None}
    for name in set(known) - set(left):
        with _telling(trackers, {name: known[name]}, places):
            pass
    reading: dict[str, Any] = {"waited_seconds": 0.0, "read_bytes": 0}
    if left:
        trained, reading = _train(left, store, folder, facts, trackers)
        results.update(trained)
    else:
        print("every run of this sweep is finished", file=sys.stderr)
    rows = [_row(name, variant, folder, results[name] or {}) for name, variant in places.items()]
    path = folder / f"sweep-{keys.digest(sorted(places))[:10]}.json"
    table = {
        "sweep": str(path),
        "store": str(store.root),
        "runs": rows,
        "seconds": time.monotonic() - begun,
        **reading,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    if not left and path.is_file():  # what training took is worth more than what looking it up took
        table = {**table, **{key: value for key, value in json.loads(path.read_text("utf-8")).items() if key in _COSTS}}
    commit.replace(path, json.dumps(table, indent=1).encode() + b"\n")
    return table


_COSTS = ("seconds", "waited_seconds", "read_bytes", "peak_memory_bytes")


@contextmanager
def _telling(trackers: Sequence[str], runs: Mapping[str, Run | None], places: Mapping[str, Variant]) -> Iterator[None]:
    """While inside, what each run logs is told to trackers of its own."""
    with ExitStack() as stack:
        for name, run in runs.items():
            stack.enter_context(reporting(trackers, run, places[name].recipe.model_dump(mode="json")))
        yield


def _train(
    left: dict[str, Variant], store: Store, folder: Path, facts: dict[str, Any], trackers: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Results of the runs by name, and what reading took. Every check is made before there is a folder."""
    data = _joint_reading([variant.recipe.data for variant in left.values()])
    parts = [Parts.of(variant.recipe, store) for variant in left.values()]
    device = parts[0].device
    train, validation = open_streams(data, parts, ReadBuffers(int(data.read_budget), allocator(device)))
    trainings = dict(zip(left, [Training.over(part, train, validation) for part in parts], strict=True))
    facts = {**facts, "environment": machine(device)}
    runs = {name: Run.create(folder / name, variant.recipe, facts) for name, variant in left.items()}
    for name, training in trainings.items():
        if runs[name].resume(training.loop):
            print(f"{name} goes on from step {training.loop.at.step} of {training.loop.total_steps}", file=sys.stderr)
        else:
            training.set_first_values(runs[name])
    total = sum(training.loop.total_steps for training in trainings.values())
    begun = sum(training.loop.at.step for training in trainings.values())
    with _telling(trackers, runs, left), stopping.deferred(), progress("sweep", total, "steps", begun) as bar:
        recorders = {name: Recorder(runs[name], bar, train.buffers) for name in trainings}
        sides = {name: _side(training, runs[name], recorders[name]) for name, training in trainings.items()}
        train_side_by_side(list(sides.values()), train, validation, device, lambda: stopping.asked() is not None)
    states = {name: each.probe_states() for name, each in trainings.items() if sides[name].failure is None}
    for place, stream in enumerate([train, validation]):
        takers = [both[place] for both in states.values() if both is not None]
        if takers and stream is not None:
            SharedBatches(stream, device).give(takers)
    streams = [train] if validation is None else [train, validation]
    print(reading_line(streams), file=sys.stderr)
    reading = _reading(streams)
    results = {}
    for name, training in trainings.items():
        failure = sides[name].failure
        if failure is None:
            results[name] = {"run": str(folder / name), **training.result(runs[name], states[name])}
            runs[name].finish(results[name])
        else:
            print(printable(f"{name} stopped: {failure}"), file=sys.stderr)
            results[name] = {"steps": training.loop.at.step, "seconds": training.loop.at.seconds, "error": failure}
    return results, reading


def _side(training: Training, run: Run, recorder: Recorder) -> Side:
    evaluator = None if training.validation is None else training.evaluator
    return Side(training.loop, training.batches, recorder, evaluator, lambda found: training.keep(run, found))


def _places(variants: Sequence[Variant], store: Store, folder: Path) -> dict[str, Variant]:
    """Every variant by the name of its run's folder."""
    found: dict[str, Variant] = {}
    for variant in variants:
        name = variant.recipe.run_name(store.fingerprint)
        if name in found:
            raise RecipeError(
                f"{found[name].label} and {variant.label} are the same run ({folder / name}); leave one out"
            )
        found[name] = variant
    return found


def _joint_reading(data: Sequence[Data]) -> Data:
    """One way to read: the most generous budget and threads, which change no order."""
    return data[0].model_copy(
        update={"read_budget": max(each.read_budget for each in data), "threads": max(each.threads for each in data)}
    )


def _reading(streams: Sequence[Stream]) -> dict[str, Any]:
    reports = [stream.report() for stream in streams]
    return {
        "waited_seconds": sum(report.waited_seconds for report in reports),
        "read_bytes": sum(report.read_bytes for report in reports),
    }


def _row(name: str, variant: Variant, folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    kept = ("steps", "metric", "best", "best_epoch", "trained_parameters", "seconds", "weights_digest", "error")
    return {
        "run": str(folder / name),
        "recipe": variant.config,
        "changed": variant.changed,
        "seed": variant.recipe.seed,
        **{key: result.get(key) for key in kept},
    }
