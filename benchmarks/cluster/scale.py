"""A cluster of 256 workers and a plan of 10 TB, simulated: everything is real but the values, and the time that a unit takes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import zlib
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sherl_cache.pipeline.cluster.connect import Connection
from sherl_cache.pipeline.cluster.dispatch import LOSSES, dispatch
from sherl_cache.pipeline.cluster.unit import Outcome
from sherl_cache.pipeline.memory import peak_memory_bytes
from sherl_cache.pipeline.progress import size
from sherl_cache.pipeline.walltime import WallTime
from sherl_cache.storage import Plan, Ragged, Receipt, ShardRecord, StoreWriter, encoding, keys, leases, plan_split
from sherl_cache.storage.documents import shard_path
from sherl_cache.storage.shards import shard_bytes

from ..storage.examples import table_of
from .subject import Silent

if TYPE_CHECKING:
    from collections.abc import Sequence

WORKERS = 256
STORE_BYTES = 10 * 10**12
SHARES, QUICK_SHARES = (0.125, 0.25, 0.5, 1.0), (0.0125, 0.025)
TAPS, WIDTH, TOKENS = 13, 768, 512
UNIT_MEMORY = 512 << 20
RATE = 25_000
"""Modelled tokens a second of a worker."""
SPED_UP = 60
"""Modelled seconds in one."""
OPEN_SECONDS = 1.0
_MANY_IN_ONE_PROCESS = {
    "distributed.comm.timeouts.connect": "10 minutes",
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "60s",
    "distributed.admin.tick.interval": "60s",
}
"""Each worker would watch the process and the event loop that all share: 256 times what one costs, for as long as it takes."""
_OPEN = """
import sys, time
from sherl_cache.storage import Store
begun = time.monotonic()
Store.open(sys.argv[1])
print(time.monotonic() - begun)
"""
LINEAR = 1.3
"""A cost is linear where the dearest unit is at most so many times the cheapest."""


def measure(folder: Path, quick: bool, seed: int) -> dict[str, Any]:
    """Each share of the plan in a process of its own, so that its memory is its own."""
    found = []
    for share in QUICK_SHARES if quick else SHARES:
        words = [sys.executable, "-m", __name__, str(folder / f"store-{share}"), str(share), str(seed)]
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True)
        found.append(json.loads(done.stdout))
    return {"workers": WORKERS, "scales": found}


def run(root: Path, share: float, seed: int) -> dict[str, Any]:
    """Begin a store, run its units on simulated workers, finish it, open it."""
    import dask
    from distributed import Client, LocalCluster

    begun = time.monotonic()
    writer = _begin(root, share, seed)
    began = time.monotonic() - begun
    options = {"memory_limit": 0, "scheduler_kwargs": {"allowed_failures": LOSSES}, "dashboard_address": "127.0.0.1:0"}
    with (
        dask.config.set(_MANY_IN_ONE_PROCESS),
        LocalCluster(n_workers=WORKERS, threads_per_worker=2, processes=False, **options) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(WORKERS)
        memory, begun, cpu = peak_memory_bytes(), time.monotonic(), time.process_time()
        task = partial(planned_unit, str(root), writer.chain.digests[-1])
        report = dispatch(Connection(client, most_workers=WORKERS), writer, task, Silent(), WallTime(None))
        seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
    begun = time.monotonic()
    writer.finalize()
    finalizing = time.monotonic() - begun
    tokens = sum(stream.tokens for stream in writer.plan.splits["train"].streams.values())
    opened = subprocess.run([sys.executable, "-c", _OPEN, str(root)], stdout=subprocess.PIPE, check=True)
    return {
        "units": len(writer.units()),
        "done": report.done,
        "bytes": sum(path.stat().st_size for path in (root / "train").rglob("*") if path.is_file()),
        "files": sum(path.is_file() for path in root.rglob("*")),
        "plan_bytes": (root / "sherl" / "plan.json").stat().st_size,
        "manifest_bytes": (root / "sherl" / "manifest-1.json").stat().st_size,
        "receipts_bytes": sum(path.stat().st_size for path in (root / "sherl" / "receipts").iterdir()),
        "modelled_hours": tokens / RATE / WORKERS / 3600,
        "begin_seconds": began,
        "dispatch_seconds": seconds,
        "dispatch_cpu_seconds": cpu,
        "dispatch_memory_bytes": peak_memory_bytes() - memory,
        "finalize_seconds": finalizing,
        "open_seconds": float(opened.stdout),
    }


def planned_unit(root: str, plan: str, name: str) -> Outcome:
    """A unit as a store sees it: files of the right size, which are all hole, and its receipt; after a while."""
    writer, units, sizes = _opened(root, plan)
    unit = units[name]
    seconds = unit.examples * TOKENS / RATE
    time.sleep(seconds / SPED_UP)
    records = {}
    for number, (array, (chunk, slots)) in enumerate(sizes.items()):
        path = shard_path(array, unit.index)
        length = shard_bytes(unit.groups, chunk, slots)
        (writer.root / path).parent.mkdir()
        with (writer.root / path).open("wb") as file:
            file.truncate(length)
        digest = keys.digest([name, number])
        sums = tuple(zlib.crc32(f"{digest}{group}".encode()) for group in range(unit.groups))
        records[array] = ShardRecord(path=path, bytes=length, sha256=digest, rows=unit.examples * TOKENS, crc32c=sums)
    receipt = Receipt(plan=plan, unit=unit.name, split=unit.split, index=unit.index, arrays=records)
    (writer.root / unit.receipt_path).write_bytes(receipt.to_bytes())
    leases.drop(writer.root, unit.name)
    return Outcome(name, "done", seconds=seconds)


@cache
def _opened(root: str, plan: str) -> tuple[StoreWriter, dict[str, Any], dict[str, tuple[int, int]]]:
    """A store's writer, its units by name, and by array the bytes of a chunk and the chunks of a shard."""
    writer = StoreWriter.open(root, plan)
    itemsize = encoding(writer.plan.encoding).itemsize
    sizes = {}
    for array in writer.plan.arrays():
        stream = array.stream_plan
        sizes[array.path] = stream.chunk_rows * array.stored_width * itemsize, array.split_plan.groups_per_unit
        (writer.root / array.path / "c").mkdir(parents=True, exist_ok=True)
    (writer.root / "sherl" / "receipts").mkdir(parents=True, exist_ok=True)
    return writer, {unit.name: unit for unit in writer.units()}, sizes


def _begin(root: Path, share: float, seed: int) -> StoreWriter:
    examples = round(share * STORE_BYTES / (TAPS * WIDTH * 2 * TOKENS))
    packed = plan_split(
        {"encoder": Ragged(np.full(examples, TOKENS, np.int32), np.ones(examples, np.int32))},
        widths={"encoder": WIDTH},
        itemsize=2,
        taps={"encoder": range(TAPS)},
        seed=seed,
        unit_memory=UNIT_MEMORY,
    )
    plan = Plan(
        encoding="bfloat16",
        identity={"data.made_by": "benchmarks.cluster"},
        producer={},
        environment={},
        splits={"train": packed.split_plan({"encoder": "nothing"})},
    )
    return StoreWriter.create(root, plan, {}, {"train": table_of(packed)})


def lines(found: dict[str, Any]) -> Sequence[str]:
    rows = []
    for item in found["scales"]:
        units = item["units"]
        each = item["dispatch_cpu_seconds"] / units * 1e3
        rows += [
            f"{size(item['bytes'])}, {units:,} units, {item['files']:,} files: plan {size(item['plan_bytes'])}, manifest "
            f"{size(item['manifest_bytes'])}, receipts {size(item['receipts_bytes'])}",
            f"  begun in {item['begin_seconds']:.1f} s, dispatched in {item['dispatch_seconds']:.0f} s ({each:.1f} ms of "
            f"computing and {size(item['dispatch_memory_bytes'] / units)} a unit, workers included), finished in "
            f"{item['finalize_seconds']:.1f} s, opened in {item['open_seconds']:.2f} s",
            f"  modelled: {item['modelled_hours']:.1f} h at {RATE:,} tokens/s a worker",
        ]
    return rows


def holds(found: dict[str, Any]) -> bool:
    scales = found["scales"]
    for cost in ("manifest_bytes", "files", "dispatch_cpu_seconds", "open_seconds"):
        each = [item[cost] / item["units"] for item in scales]
        if each[-1] > LINEAR * each[0]:
            return False
    return bool(scales[-1]["open_seconds"] <= OPEN_SECONDS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("share", type=float)
    parser.add_argument("seed", type=int)
    chosen = parser.parse_args()
    print(json.dumps(run(chosen.root, chosen.share, chosen.seed)))
