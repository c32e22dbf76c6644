"""What scheduling costs: units that do nothing, through the whole path, beside the time that a real one takes."""

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
from sherl_cache.stages.extract import extract_missing
from sherl_cache.stages.streaming_front import front_of
from sherl_cache.storage import Plan, Ragged, StoreWriter, claim_units, encoding, leases, plan_split

from ..storage.examples import table_of
from .subject import Silent, begin, prepared

if TYPE_CHECKING:
    from collections.abc import Sequence

UNITS, QUICK_UNITS = 10_000, 1000
WORKERS = 2
GOAL = 0.03
UNIT_BYTES = 512 << 20
"""What --unit-memory is by default."""
EXAMPLES, QUICK_EXAMPLES, TOKENS = 96, 16, 128
"""Of the real work: BERT-base with one thread, all taps."""
UNIT_SECONDS = (1, 10, 60)
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
        for unit in claimed:
            leases.drop(writer.root, unit.name)
            claimed.ended(unit)
    claims = time.monotonic() - begun, time.process_time() - cpu
    with local(WORKERS, 1, [], "127.0.0.1:0") as there:
        there.client.wait_for_workers(WORKERS)
        task = partial(nothing, str(writer.root.absolute()))
        there.client.run(task, "none")  # imports take as long as many units
        begun, cpu = time.monotonic(), time.process_time()
        report = dispatch(there, writer, task, Silent(), WallTime(None))
        spent = time.monotonic() - begun, time.process_time() - cpu
    assert report.done == units
    real = _real_seconds(folder, QUICK_EXAMPLES if quick else EXAMPLES)
    return {
        "real_unit_seconds": real,
        "share_of_a_real_unit": spent[0] / units * WORKERS / real,
        "units": units,
        "workers": WORKERS,
        "seconds_a_unit": spent[0] / units,
        "driver_cpu_seconds_a_unit": spent[1] / units,
        "claims_alone_seconds_a_unit": claims[0] / units,
        "claims_alone_cpu_seconds_a_unit": claims[1] / units,
    }


def _real_seconds(folder: Path, examples: int) -> float:
    """Seconds of a unit of the default size on one thread, from the rate at which some units are computed and committed."""
    found = prepared(folder, "base", examples, TOKENS, UNIT_BYTES // 16, threads=1)
    writer, _ = begin(found, folder / "real", 1)
    front = front_of(found.loaded, found.taps)
    front(found.sample(8))
    begun = time.monotonic()
    extract_missing(front, writer, found.settings.batch_tokens)
    rate = found.input_tokens() / (time.monotonic() - begun)
    stream = writer.plan.splits["train"].streams["encoder"]
    return UNIT_BYTES / (stream.row_numbers * encoding(writer.plan.encoding).itemsize) / rate


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
        f"{workers} workers: " + ", ".join(f"{cpu * workers / seconds:.2%} of {seconds} s" for seconds in UNIT_SECONDS)
        for workers in SIZES
    ]
    return [
        f"{found['units']:,} empty units on {found['workers']} workers: {each * 1e3:.2f} ms a unit, of which the driver "
        f"computes {cpu * 1e3:.2f} ms; claims alone {found['claims_alone_seconds_a_unit'] * 1e3:.2f} ms",
        f"a unit of {UNIT_BYTES >> 20} MiB of BERT-base takes {found['real_unit_seconds']:.1f} s on one thread, scheduling "
        f"{found['share_of_a_real_unit']:.2%} of the time in which {found['workers']} workers do so; {GOAL:.0%} is kept by "
        f"units of at least {each * found['workers'] / GOAL:.2f} s",
        "the driver's computing as a share of the time in which a unit ends somewhere, by seconds of a unit:",
        *(f"  {share}" for share in shares),
    ]


def holds(found: dict[str, Any]) -> bool:
    return bool(found["share_of_a_real_unit"] <= GOAL)
