"""Workers that are killed while they work: the digest of the lone run, and what was done twice."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from sherl_cache.pipeline.cluster.connect import local
from sherl_cache.pipeline.cluster.dispatch import dispatch
from sherl_cache.pipeline.cluster.unit import Outcome, UnitJob, run_unit, warm_up
from sherl_cache.pipeline.walltime import WallTime
from sherl_cache.stages.extract import extract_missing
from sherl_cache.stages.streaming_front import front_of

from .subject import Silent, begin, prepared

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WORKERS = 3
KILLS, QUICK_KILLS = 20, 2
UNITS = 40
TOKENS = 48
EXAMPLES, UNIT_BYTES = 1600, 4 << 20
QUICK_EXAMPLES, QUICK_UNIT_BYTES = 400, 1 << 20
AFTER_SECONDS = (2.0, 10.0)
MOST_ROUNDS = 40

_ready: set[int] = set()


def logged_unit(log: str, job: UnitJob, name: str) -> Outcome:
    """`run_unit`, with a line when this process is ready, and when a unit begins and ends."""
    process = os.getpid()
    if process not in _ready and not warm_up(job):
        _ready.add(process)
        _say(log, f"ready {process} -")
    _say(log, f"begin {process} {name}")
    outcome = run_unit(job, name)
    _say(log, f"{outcome.kind} {process} {name}")
    return outcome


def _say(log: str, line: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, f"{line}\n".encode())  # one call: lines of several processes do not mix
    finally:
        os.close(file)


def heard(log: Path) -> list[list[str]]:
    """The lines of a log, in words."""
    return [line.split() for line in log.read_text("ascii").splitlines()] if log.exists() else []


class Killer(threading.Thread):
    """Kills one worker after the other, at random, each 2 to 10 s after it said that it is ready."""

    def __init__(self, log: Path, random_: random.Random, most: int) -> None:
        super().__init__(daemon=True)
        self.log, self.random, self.most = log, random_, most
        self.killed: list[int] = []
        self.over = threading.Event()

    def run(self) -> None:
        due: dict[int, float] = {}
        while not self.over.wait(0.02) and len(self.killed) < self.most:
            now = time.monotonic()
            for word, process, _ in heard(self.log):
                if word == "ready" and int(process) not in due:
                    due[int(process)] = now + self.random.uniform(*AFTER_SECONDS)
            ripe = [process for process, at in due.items() if at <= now and process not in self.killed]
            if ripe:
                victim = self.random.choice(ripe)
                os.kill(victim, signal.SIGKILL)
                self.killed.append(victim)


def measure(folder: Path, quick: bool, seed: int, kills: int | None = None, size: str = "mini") -> dict[str, Any]:
    """Rounds of one extraction each, until so many workers were killed."""
    kills = kills or (QUICK_KILLS if quick else KILLS)
    examples, unit_bytes = (QUICK_EXAMPLES, QUICK_UNIT_BYTES) if quick else (EXAMPLES, UNIT_BYTES)
    found = prepared(folder, size, examples, TOKENS, unit_bytes, threads=1)
    writer, _ = begin(found, folder / "lone", 1)
    units = len(writer.units())
    begun = time.monotonic()
    extract_missing(front_of(found.loaded, found.taps), writer, found.settings.batch_tokens)
    lone_seconds, digest = time.monotonic() - begun, writer.finalize().digest
    random_ = random.Random(seed)
    rounds: list[dict[str, Any]] = []
    while sum(item["kills"] for item in rounds) < kills and len(rounds) < MOST_ROUNDS:
        root, log = folder / f"store-{len(rounds)}", folder / f"log-{len(rounds)}"
        writer, job = begin(found, root, 1)
        killer = Killer(log, random_, kills - sum(item["kills"] for item in rounds))
        started = time.monotonic()
        with local(WORKERS, 1, [], "127.0.0.1:0") as there:
            killer.start()
            try:
                report = dispatch(
                    there, writer, partial(logged_unit, str(log.absolute()), job), Silent(), WallTime(None)
                )
            finally:
                killer.over.set()
                killer.join()
        words = Counter(word for word, _, _ in heard(log))
        rounds.append(
            {
                "kills": len(killer.killed),
                "same_digest": writer.finalize().digest == digest,
                "tasks_begun": words["begin"],
                "found_committed": words["there"],
                "rework": words["begin"] - words["there"] - units,
                "given_again": report.lost,
                "seconds": time.monotonic() - started,
            }
        )
    return {"units": units, "workers": WORKERS, "lone_seconds": lone_seconds, "rounds": rounds}


def lines(found: dict[str, Any]) -> Sequence[str]:
    rounds = found["rounds"]
    kills, rework = sum(item["kills"] for item in rounds), sum(item["rework"] for item in rounds)
    same = sum(item["same_digest"] for item in rounds)
    return [
        f"{kills} kills in {len(rounds)} extractions of {found['units']} units on {found['workers']} workers",
        f"{same} of {len(rounds)} stores have the digest of the lone run",
        f"{rework} tasks begun in vain, {rework / max(kills, 1):.2f} a kill; two are with a worker: one runs, the other waits "
        "for it or is committed",
    ]


def holds(found: dict[str, Any]) -> bool:
    rounds = found["rounds"]
    return found["units"] >= UNITS and all(item["same_digest"] for item in rounds)
