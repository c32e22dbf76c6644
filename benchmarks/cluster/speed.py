"""How fast workers are, against the same work in processes that nobody schedules."""

from __future__ import annotations

import multiprocessing
import os
import time
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from sherl_cache.pipeline.cluster.connect import local
from sherl_cache.pipeline.cluster.dispatch import dispatch
from sherl_cache.pipeline.cluster.unit import run_unit, warm_up
from sherl_cache.pipeline.walltime import WallTime
from sherl_cache.stages.extract import extract_missing
from sherl_cache.stages.streaming_front import front_of
from sherl_cache.stages.subject import load_model
from sherl_cache.storage import StoreWriter

from .subject import Silent, begin, prepared

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.synchronize import Barrier
    from pathlib import Path

    from sherl_cache.pipeline.cluster.unit import UnitJob
    from sherl_cache.stages.tokens import TokenBatch

CORES = 2
GOAL = 0.95
WAYS = (("process", 1, CORES), ("worker", 1, CORES), ("process", 1, 1), ("process", CORES, 1), ("worker", CORES, 1))
EXAMPLES, QUICK_EXAMPLES = 800, 320
TURNS, QUICK_TURNS = 9, 1
TOKENS = 48
UNIT_BYTES = 15 << 20
READY_SECONDS = 300


def measure(folder: Path, quick: bool, seed: int) -> dict[str, Any]:
    """Tokens a second of one process with all cores and with one, of one worker with all cores, and of two workers and two
    processes with one each.

    Two processes share the store by its leases, as any two `extract` do: what the machine gives to two at a time, whose
    threads for encoding and committing have no core of their own any more. What is compared runs one after the other, in
    turned order each time, and the median of the ratios counts: the machine's speed drifts.
    """
    examples = QUICK_EXAMPLES if quick else EXAMPLES
    turns: list[dict[str, float]] = []
    for turn in range(QUICK_TURNS if quick else TURNS):
        rates = {}
        for way, count, threads in WAYS if turn % 2 == 0 else reversed(WAYS):
            root = folder / f"store-{turn}-{way}-{count}-{threads}"
            run = _run_workers if way == "worker" else _run_processes
            tokens, seconds = run(folder, root, examples, count, threads)
            rates[_name(way, count, threads)] = tokens / seconds
        turns.append(rates)
    one, two = _name("process", 1, CORES), _name("worker", CORES, 1)
    return {
        "examples": examples,
        "turns": turns,
        "tokens_per_second": {name: median(rates[name] for rates in turns) for name in turns[0]},
        "one_worker": _ratio(turns, _name("worker", 1, CORES), one),
        "two_workers": _ratio(turns, two, _name("process", CORES, 1)),
        "two_workers_against_twice_one_thread": _ratio(turns, two, _name("process", 1, 1)) / CORES,
        "two_workers_against_all_cores": _ratio(turns, two, one),
    }


def _ratio(turns: Sequence[Mapping[str, float]], way: str, other: str) -> float:
    return median(rates[way] / rates[other] for rates in turns)


def _name(way: str, count: int, threads: int) -> str:
    return f"{count} {way}{'' if count == 1 else 'es' if way == 'process' else 's'} of {threads} threads"


def _run_workers(folder: Path, root: Path, examples: int, workers: int, threads: int) -> tuple[int, float]:
    """Tokens, and seconds from the first unit to the last commit, everybody having the model."""
    found = prepared(folder, "small", examples, TOKENS, UNIT_BYTES, threads)
    writer, job = begin(found, root, threads)
    with local(workers, threads, [], "127.0.0.1:0") as there:
        there.client.wait_for_workers(workers)
        assert not any(there.client.run(warm_up, job).values())
        begun = time.monotonic()
        dispatch(there, writer, partial(run_unit, job), Silent(), WallTime(None))
        return found.input_tokens(), time.monotonic() - begun


def _run_processes(folder: Path, root: Path, examples: int, processes: int, threads: int) -> tuple[int, float]:
    """The same of plain processes, which begin together."""
    found = prepared(folder, "small", examples, TOKENS, UNIT_BYTES, threads)
    _, job = begin(found, root, threads)
    work = job, dict(found.taps), found.sample(8), threads
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes + 1)
    others = [context.Process(target=_extract, args=(*work, ready)) for _ in range(processes)]
    for other in others:
        other.start()
    try:
        ready.wait(READY_SECONDS)
        begun = time.monotonic()
        for other in others:
            other.join()
        seconds = time.monotonic() - begun
    finally:
        for other in others:
            other.kill()
    assert not any(other.exitcode for other in others)
    return found.input_tokens(), seconds


def _extract(
    job: UnitJob, taps: Mapping[str, tuple[int, ...]], sample: TokenBatch, threads: int, ready: Barrier
) -> None:
    """Every unit that no other process holds, as `extract` does it; the process ends with its last commit."""
    torch.set_num_threads(threads)
    writer = StoreWriter.open(job.root, job.plan)
    front = front_of(load_model(job.settings, torch.device("cpu")), taps)
    front(sample)
    ready.wait(READY_SECONDS)
    extract_missing(front, writer, job.settings.batch_tokens)
    os._exit(0)  # what python takes down at its end is no part of the work


def lines(found: dict[str, Any]) -> Sequence[str]:
    rates = ", ".join(f"{name}: {rate:,.0f}" for name, rate in found["tokens_per_second"].items())
    return [
        f"tokens a second of {found['examples']:,} examples: {rates}",
        f"one worker reaches {found['one_worker']:.2f} of one process; two reach {found['two_workers']:.2f} of two processes, "
        f"{found['two_workers_against_twice_one_thread']:.2f} of twice one process with one thread, whose other threads have "
        f"the second core, and {found['two_workers_against_all_cores']:.2f} of one process with all cores",
    ]


def holds(found: dict[str, Any]) -> bool:
    return bool(min(found["one_worker"], found["two_workers"]) >= GOAL)
