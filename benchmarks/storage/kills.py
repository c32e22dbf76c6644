"""SIGKILL: eight writers with a numpy producer killed at drawn instants, and one killed after each call of a commit.

Every draw restarts all eight writers on the same store; the instants are drawn over the whole of a store's making, from
its first receipt on. Leases of killed writers are those of ended processes of this host, so their units are taken over
at once.
"""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

from sherl_cache.storage import Store

from .killed import killed_after_each_call, processes
from .producer import Producer, noted, receipts
from .row import Row, Scale

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

WRITERS = 8
_STEP = 43  # of the calls, in a quick run


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """The kills at random, then those after each call."""
    yield _at_random(scale, folder)
    yield _after_each_call(scale, folder / "calls")


def _at_random(scale: Scale, folder: Path) -> Row:
    kills = scale.of(200, 3)
    share = scale.of(160, 2)
    producer = Producer(examples=4_000, taps=2, width=16, units=scale.of(160, 32), seconds=0.01, seed=scale.seed)
    digest = producer.build(folder / "whole")
    units = len(producer.plan.units())
    draw = random.Random(scale.seed)
    done = partial = stores = again = allowed = 0
    differing = findings = failed = 0
    while done < kills:
        root, log = folder / f"store-{stores}", folder / f"store-{stores}.log"
        stores += 1
        died_here = 0
        while True:  # kill one of the eight again and again until the store is whole
            goal = draw.randrange(max(receipts(root), 1), units)
            crew = _start(producer, root, log)
            hit = _kill_one(crew, root, goal, draw)
            if hit:
                done += 1
                died_here += 1
                partial += receipts(root) < units
                for process in crew:  # the machine went down with it: nobody lives who could finish
                    process.kill()
            failed += _wait(crew)
            if not hit or done >= kills or receipts(root) == units:
                break
        last = _start(producer, root, log)
        failed += _wait(last)
        store = Store.open(root)
        differing += store.digest != digest
        findings += len(store.verify(deep=True))
        again += len(noted(log)) - units
        allowed += died_here * WRITERS
    holds = not differing and not findings and not failed and partial >= share and again <= allowed
    return Row(
        f"{done} SIGKILLs of {WRITERS} writers at drawn instants",
        f"at least {share} leave a partial store; digests equal; rework at most the units in flight",
        f"{partial} partial, {stores} stores, {differing} other digests, {findings} findings, {again} units computed "
        f"again of {allowed} in flight",
        holds,
        {
            "kills": done,
            "partial": partial,
            "stores": stores,
            "units": units,
            "again": again,
            "in_flight": allowed,
            "failed_writers": failed,
        },
    )


def _start(producer: Producer, root: Path, log: Path) -> list[ForkServerProcess]:
    context = processes()
    crew = [context.Process(target=producer.work, args=(root, log, 60.0)) for _ in range(WRITERS)]
    for process in crew:
        process.start()
    return crew


def _kill_one(crew: list[ForkServerProcess], root: Path, goal: int, draw: random.Random) -> bool:
    """SIGKILL one writer a moment after `goal` receipts; whether it was at work then."""
    while receipts(root) < goal and any(process.is_alive() for process in crew):
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.02))
    victim = draw.choice(crew)
    victim.kill()
    victim.join()
    return victim.exitcode == -signal.SIGKILL


def _wait(crew: list[ForkServerProcess]) -> int:
    """Writers that ended by themselves with an error."""
    for process in crew:
        process.join()
    return sum(process.exitcode not in (0, -signal.SIGKILL) for process in crew)


def _work(producer: Producer, root: Path) -> None:
    producer.work(root, root.with_suffix(".log"), 60.0)


def _after_each_call(scale: Scale, folder: Path) -> Row:
    """One writer with leases and two units; the same again must finish it."""
    producer = Producer(examples=40, taps=1, width=4, units=2, seed=scale.seed)
    digest = producer.build(folder / "whole")
    units = len(producer.plan.units())
    died = differing = findings = left = again = 0
    step = scale.of(1, _STEP)
    for root in killed_after_each_call(partial(_work, producer), folder, step=step):
        died += 1
        _work(producer, root)
        store = Store.open(root)
        differing += store.digest != digest
        findings += len(store.verify(deep=True))
        left += sum(path.name.endswith(".tmp") or path.parent.name == "leases" for path in root.rglob("*"))
        again += max(len(noted(root.with_suffix(".log"))) - units, 0) > 1
    holds = died > 0 and not differing and not findings and not left and not again
    return Row(
        f"SIGKILL after each{'' if step == 1 else f' {step}th'} system call of a store of {units} units",
        "digests equal; at most the unit in flight computed again",
        f"{died} kills, {differing} other digests, {findings} findings, {left} files left behind, {again} with more rework",
        holds,
        {"kills": died, "step": step, "left_behind": left},
    )
