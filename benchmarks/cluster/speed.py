"""How fast workers are, against the same work in one process."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from sherl_cache.pipeline.cluster.connect import local
from sherl_cache.pipeline.cluster.dispatch import dispatch
from sherl_cache.pipeline.cluster.unit import run_unit, warm_up
from sherl_cache.pipeline.walltime import WallTime
from sherl_cache.stages.extract import extract_missing
from sherl_cache.stages.streaming_front import front_of

from .subject import Silent, begin, prepared

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CORES = 2
GOAL = 0.95
EXAMPLES, QUICK_EXAMPLES = 6400, 640
REPEATS, QUICK_REPEATS = 3, 1
TOKENS = 48
UNIT_BYTES = 15 << 20


def measure(folder: Path, quick: bool, seed: int) -> dict[str, Any]:
    """Tokens a second, the best of some repeats: alone with all cores and with one, and one and two workers of as many."""
    examples = QUICK_EXAMPLES if quick else EXAMPLES
    rates: dict[str, list[float]] = {}
    for repeat in range(QUICK_REPEATS if quick else REPEATS):
        for workers, threads in ((0, CORES), (1, CORES), (0, 1), (CORES, 1)):
            root = folder / f"store-{repeat}-{workers}-{threads}"
            tokens, seconds = _run(folder, root, examples, workers, threads)
            rates.setdefault(f"{workers} workers, {threads} threads", []).append(tokens / seconds)
    best = {name: max(found) for name, found in rates.items()}
    return {
        "examples": examples,
        "tokens_per_second": best,
        "one_worker": best[f"1 workers, {CORES} threads"] / best[f"0 workers, {CORES} threads"],
        "two_workers": best[f"{CORES} workers, 1 threads"] / (CORES * best["0 workers, 1 threads"]),
        "two_workers_against_one_process": best[f"{CORES} workers, 1 threads"] / best[f"0 workers, {CORES} threads"],
    }


def _run(folder: Path, root: Path, examples: int, workers: int, threads: int) -> tuple[int, float]:
    """Tokens, and seconds from the first unit to the last commit, everybody having the model."""
    found = prepared(folder, "small", examples, TOKENS, UNIT_BYTES, threads)
    writer, job = begin(found, root, threads)
    tokens = found.input_tokens()
    if not workers:
        front = front_of(found.loaded, found.taps)
        front(found.sample(8))
        begun = time.monotonic()
        extract_missing(front, writer, found.settings.batch_tokens)
        return tokens, time.monotonic() - begun
    with local(workers, threads, [], "127.0.0.1:0") as there:
        there.client.wait_for_workers(workers)
        assert not any(there.client.run(warm_up, job).values())
        begun = time.monotonic()
        dispatch(there, writer, partial(run_unit, job), Silent(), WallTime(None))
        return tokens, time.monotonic() - begun


def lines(found: dict[str, Any]) -> Sequence[str]:
    rates = ", ".join(
        f"{name.replace('0 workers', 'in process')}: {rate:,.0f}" for name, rate in found["tokens_per_second"].items()
    )
    return [
        f"tokens a second of {found['examples']:,} examples: {rates}",
        f"one worker reaches {found['one_worker']:.2f} of the process alone, two {found['two_workers']:.2f} of twice the "
        f"process with one thread and {found['two_workers_against_one_process']:.2f} of the process with all cores",
    ]


def holds(found: dict[str, Any]) -> bool:
    return bool(min(found["one_worker"], found["two_workers"]) >= GOAL)
