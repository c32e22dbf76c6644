"""The same examples in batches of 32, all taps, by other ways to keep them.

Each peer lives in an environment of its own, which is made here and removed (a quick run takes only those that ours
holds anyway); it converts the data once to its own
format (not timed) and reads as its documentation says. Where it takes an order it reads our very batches; loaders use
their own shuffle. Ours is measured before and after each peer, and the ratio is that of the medians.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import data, disk
from ..reading import BATCH, drain, open_stream, small_budget
from ..row import Row, Scale
from .job import Job

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sherl_cache.storage import Store

THREADS = 2
ROOT = Path(__file__).resolve().parents[3]
_INSTALL_SECONDS = 900
_ERROR_LENGTH = 100


@dataclass(frozen=True)
class Peer:
    """One way to read: file <script>.py in an environment with `packages`; goal: times its speed that ours shall be.

    quick: also in a quick run, which makes no environments and runs it in ours.
    """

    name: str
    script: str
    packages: tuple[str, ...]
    goal: float = 2.0
    variant: str = ""
    quick: bool = False


_ZARR = ("zarr==3.1.6", "zarrs==0.2.3", "numpy==2.4.6")
_TENSORSTORE = ("tensorstore==0.1.86", "numpy==2.4.6")
_LITDATA = ("litdata==0.2.76", "torch==2.13.0")

# Versions are those that were tried; neighbours with the same packages share an environment. Loaders have no worker processes:
# with 1 or 2 each of them was slower on the two cores of the machine where that was tried.
PEERS = (
    Peer("numpy memmap, random index", "memmap", ("numpy==2.4.6",), variant="random", quick=True),
    Peer("numpy memmap, our batches", "memmap", ("numpy==2.4.6",), quick=True),
    Peer("zarr-python", "zarr", _ZARR, goal=10.0, quick=True),
    Peer("zarr-python with zarrs", "zarr", _ZARR, variant="zarrs"),
    Peer("tensorstore, our arrays", "tensorstore", _TENSORSTORE),
    Peer("tensorstore, own array", "tensorstore", _TENSORSTORE, variant="own"),
    Peer("mosaicml-streaming", "mds", ("mosaicml-streaming==0.13.0", "torch==2.13.0"), variant="0"),
    Peer("litdata, default layout", "litdata", _LITDATA, variant="pytree 0"),
    Peer("litdata, TemporalArrayLoader", "litdata", _LITDATA, variant="temporal 0"),
)


@dataclass(frozen=True)
class _Ours:
    """Examples per second of some passes; device: share of the bytes of each cold pass that the device gave."""

    warm: list[float]
    cold: list[float]
    device: list[float]


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """For each peer a row for warm and one for cold; for the loaders one for their order of batches."""
    store = data.build(folder / "store", scale.of(1 << 30, 80 << 20), seed=scale.seed)
    job = prepare(store, folder, scale)
    sums = example_sums(job)
    chosen = [peer for peer in PEERS if peer.quick or not scale.quick]
    for packages, group in itertools.groupby(chosen, key=lambda peer: peer.packages):
        python = sys.executable if scale.quick else ""
        with Environment(folder / "environment", packages, python) as environment:
            for peer in group:
                yield from _compare(peer, environment, replace(job, variant=peer.variant), store, sums)


def prepare(store: Store, folder: Path, scale: Scale) -> Job:
    """The data as plain files beside the store."""
    plan = store.split(data.SPLIT).streams[data.STREAM]
    table = store.examples(data.SPLIT)
    lengths = table.lengths[data.STREAM].values.astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    stream = open_stream(store, range(data.TAPS), seed=scale.seed, budget_bytes=1 << 30)  # which changes no order
    order = np.concatenate([batch.examples.copy() for batch in stream.epoch(1)])
    job = Job(
        flat=folder / "flat.bin",
        starts=folder / "starts.bin",
        offsets=folder / "offsets.bin",
        order=folder / "order.bin",
        store=Path(str(store.root)),
        arrays=[f"{data.SPLIT}/{data.STREAM}/h{tap:02d}" for tap in plan.taps],
        work=folder / "work",
        taps=len(plan.taps),
        width=plan.width,
        batch=BATCH,
        budget=small_budget(store, range(data.TAPS)),
        passes=scale.of(3, 1),
        pass_seconds=scale.of(7, 1),
        seed=scale.seed,
    )
    starts.tofile(job.starts)
    table.offsets(data.STREAM).astype(np.int64).tofile(job.offsets)
    order.astype(np.int64).tofile(job.order)
    _write_flat(store, job, starts)
    return job


def _write_flat(store: Store, job: Job, starts: np.ndarray[Any, Any]) -> None:
    """Rows of every example, all taps of a token together, in written order."""
    table = store.examples(data.SPLIT)
    plan = store.split(data.SPLIT).streams[data.STREAM]
    out = np.memmap(job.flat, dtype=np.uint16, mode="w+", shape=(plan.tokens, len(plan.taps), plan.width))
    for group, (first, stop) in enumerate(itertools.pairwise(table.first_examples.tolist())):
        begin, end = int(starts[first]), int(starts[stop])
        for depth, tap in enumerate(plan.taps):
            # Examples of a group lie one after another from its first row on.
            out[begin:end, depth] = store.chunk(data.SPLIT, data.STREAM, tap, group)[: end - begin]
    out.flush()


def example_sums(job: Job) -> np.ndarray[Any, Any]:
    """Sum of every stored number of each example: the oracle of what a peer delivers."""
    starts = job.numbers(job.starts)
    # A job of its own, so that the file is not mapped any longer: mapped pages stay in the page cache.
    by_token = replace(job).rows.sum(axis=(1, 2), dtype=np.uint64)
    return np.add.reduceat(by_token, starts[:-1])


def _compare(peer: Peer, environment: Environment, job: Job, store: Store, sums: np.ndarray[Any, Any]) -> Iterator[Row]:
    what = f"examples/s of {peer.name}, ours over it"
    if environment.problem:
        yield Row(f"{what}: skipped", f">= {peer.goal:g}", environment.problem, None)
        return
    before = measure_ours(store, job)
    try:
        found = environment.run(peer, job)
    except RuntimeError as error:
        yield Row(f"{what}: skipped", f">= {peer.goal:g}", str(error), None)
        return
    after = measure_ours(store, job)
    check(found, job, sums, peer)
    for kind in ("warm", "cold"):
        ours = median(getattr(before, kind) + getattr(after, kind))
        theirs = median(found[kind])
        is_cold = found["resident"] < 1 - disk.COLD_SHARE and min(before.device + after.device) > disk.COLD_SHARE
        note = "" if kind == "warm" or is_cold else "; NOT COLD"
        yield Row(
            f"{what}, {kind}",
            f">= {peer.goal:g}",
            f"{ours / theirs:.2f} ({ours:,.0f} / {theirs:,.0f}{note})",
            None if note else ours / theirs >= peer.goal,
            {**found, "ours": {"before": asdict(before), "after": asdict(after)}, "ratio": ours / theirs},
        )
    if order := found.get("order"):
        yield Row(
            f"global batches of {peer.name}, ranks x workers {{1,2,4}}", "-", _order(order), None, {"order": order}
        )


def _order(order: dict[str, dict[str, Any]]) -> str:
    """Whether the global batches are the same for all settings, in words."""
    different, full = (len({found[name] for found in order.values()}) for name in ("digest", "full"))
    lost, repeated = (max(found[name] for found in order.values()) for name in ("lost", "repeated"))
    worst = f"; up to {lost} lost, {repeated} repeated"
    if different == 1:
        return f"all {len(order)} equal{worst}"
    if full == 1:
        return f"all {len(order)} equal but for the last batch{worst}"
    return f"{different} different orders in {len(order)} settings{worst}"


def check(found: dict[str, Any], job: Job, sums: np.ndarray[Any, Any], peer: Peer) -> None:
    """Whether the peer delivered what was stored. Raises RuntimeError."""
    count = found["checked_examples"]
    whole = count == len(sums)
    if not whole and (peer.script in ("mds", "litdata") or peer.variant == "random"):
        return  # an order of its own, cut off by time: nothing to compare with
    expected = int(sums.sum() if whole else sums[job.numbers(job.order)[:count]].sum())
    if found["checked_sum"] != expected:
        raise RuntimeError(f"{peer.name}: {count} examples add up to {found['checked_sum']}, not to {expected}")


def measure_ours(store: Store, job: Job) -> _Ours:
    """Our stream, as many passes: warm ones after the first, then cold ones, each with a new stream."""
    stream = open_stream(store, range(data.TAPS), THREADS, job.seed)
    examples = store.split(data.SPLIT).examples
    drain(stream, 0)
    warm = [examples / drain(stream, 1 + number).seconds for number in range(job.passes)]
    paths = data.shard_files(store)
    size = sum(path.stat().st_size for path in paths)
    cold, device = [], []
    for number in range(job.passes):
        stream = open_stream(store, range(data.TAPS), THREADS, number)
        disk.forget(paths)
        found = drain(stream, 0)
        cold.append(examples / found.seconds)
        device.append(found.device / size)
    return _Ours(warm, cold, device)


class Environment:
    """A virtual environment with some packages, made on entry; `problem` says why there is none.

    python: the interpreter that runs peers, where nothing is to be made.
    """

    def __init__(self, folder: Path, packages: Sequence[str], python: str = "") -> None:
        self.folder, self.packages = folder, packages
        self.python = python or str(folder / "bin" / "python")
        self.problem = ""

    def __enter__(self) -> Environment:
        if self.python == sys.executable:
            return self
        install = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
        for command in ([sys.executable, "-m", "venv", str(self.folder)], [*install, *self.packages]):
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS)
            except (OSError, subprocess.TimeoutExpired) as error:
                self.problem = f"does not install: {error}"
                break
            if done.returncode:
                self.problem = f"does not install: {_last_line(done.stderr)}"
                break
        return self

    def __exit__(self, *_: object) -> None:
        remove(self.folder)

    def run(self, peer: Peer, job: Job) -> dict[str, Any]:
        """The findings of a peer. Raises RuntimeError where it fails."""
        job.work.mkdir()
        job.save(place := job.work / "job.json")
        command = [self.python, "-m", f"{__package__}.{peer.script}", str(place)]
        limit = 60 + (2 * job.passes + 1) * job.pass_seconds * 3
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=_clean(), capture_output=True, text=True, check=False, timeout=limit
            )
            if done.returncode:
                raise RuntimeError(f"fails: {_last_line(done.stderr)}")
            found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
            return found
        except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
            raise RuntimeError(f"fails: {error}") from None
        finally:
            remove(job.work)


def _clean() -> dict[str, str]:
    """Our environment variables without those that point Python at our own packages."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


def _last_line(text: str) -> str:
    return " ".join(text.strip().splitlines()[-1:])[:_ERROR_LENGTH]


def remove(folder: Path) -> None:
    """Remove a folder; workers of a peer that are still ending may hold it for a moment."""
    import shutil

    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.25)
