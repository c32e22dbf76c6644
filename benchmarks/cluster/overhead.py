"""What scheduling costs: units that do nothing, through the whole path."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sherl_cache.pipeline.cluster.connect import local
from sherl_cache.pipeline.cluster.dispatch import dispatch
from sherl_cache.pipeline.cluster.unit import Outcome
from sherl_cache.pipeline.walltime import WallTime
from sherl_cache.storage import Plan, Ragged, StoreWriter, claim_units, leases, plan_split

from ..storage.examples import table_of
from .subject import Silent

if TYPE_CHECKING:
    from collections.abc import Sequence

UNITS, QUICK_UNITS = 10_000, 1000
WORKERS = 2
GOAL = 0.03
REAL_SECONDS = (1, 10, 60)
"""Seconds of a unit on one worker."""
SIZES = (2, 16, 64, 256)
"""Numbers of workers."""


def nothing(root: str, name: str) -> Outcome:
    """A unit without work; its lease goes, as it does when a unit is committed."""
    leases.drop(Path(root), name)
    return Outcome(name, "done")


def measure(folder: Path, quick: bool, seed: int) -> dict[str, Any]:
    units = QUICK_UNITS if quick else UNITS
    writer = _begin(folder / "store", units, seed)
    begun, cpu = time.monotonic(), time.process_time()
    with claim_units(writer) as claimed:
        for number, unit in enumerate(claimed, 1):
            leases.drop(writer.root, unit.name)
            claimed.ended(unit)
        assert number == units
    claims = time.monotonic() - begun, time.process_time() - cpu
    with local(WORKERS, 1, [], "127.0.0.1:0") as there:
        there.client.wait_for_workers(WORKERS)
        begun, cpu = time.monotonic(), time.process_time()
        report = dispatch(there, writer, partial(nothing, str(writer.root.absolute())), Silent(), WallTime(None))
        spent = time.monotonic() - begun, time.process_time() - cpu
    assert report.done == units
    return {
        "units": units,
        "workers": WORKERS,
        "seconds_a_unit": spent[0] / units,
        "driver_cpu_seconds_a_unit": spent[1] / units,
        "claims_alone_seconds_a_unit": claims[0] / units,
        "claims_alone_cpu_seconds_a_unit": claims[1] / units,
    }


def _begin(root: Path, units: int, seed: int) -> StoreWriter:
    """A store of so many units, two short examples each."""
    lengths = np.full(2 * units, 32, np.int32)
    packed = plan_split(
        {"encoder": Ragged(lengths, np.ones(len(lengths), np.int32))},
        widths={"encoder": 4},
        itemsize=4,
        taps={"encoder": (0,)},
        seed=seed,
        chunk_bytes=(1024, 1024),
        unit_memory=1024,
    )
    plan = Plan(
        encoding="float32",
        identity={"data.made_by": "benchmarks.cluster"},
        producer={},
        environment={},
        splits={"train": packed.split_plan({"encoder": "nothing"})},
    )
    writer = StoreWriter.create(root, plan, {}, {"train": table_of(packed)})
    assert len(writer.units()) == units
    return writer


def lines(found: dict[str, Any]) -> Sequence[str]:
    each, cpu = found["seconds_a_unit"], found["driver_cpu_seconds_a_unit"]
    shares = [
        f"{workers} workers: " + ", ".join(f"{cpu * workers / seconds:.2%} of {seconds} s" for seconds in REAL_SECONDS)
        for workers in SIZES
    ]
    return [
        f"{found['units']:,} empty units on {found['workers']} workers: {each * 1e3:.2f} ms a unit, of which the driver "
        f"computes {cpu * 1e3:.2f} ms; claims alone {found['claims_alone_seconds_a_unit'] * 1e3:.2f} ms",
        "the driver's computing as a share of the time in which a unit ends somewhere, by seconds of a unit:",
        *(f"  {share}" for share in shares),
    ]


def holds(found: dict[str, Any]) -> bool:
    return bool(found["seconds_a_unit"] * WORKERS / REAL_SECONDS[1] <= GOAL)
