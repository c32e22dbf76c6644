"""What every peer of the benchmark is given and how it is timed; runs in the peer's own environment, knows numpy only.

A batch counts when the rows of its examples lie one after another in one piece of memory of the process: what a
training step needs, and what a stream of ours yields.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Epoch = Callable[[int], Iterator[tuple[int, NDArray[np.uint16]]]]


@dataclass(frozen=True)
class Job:
    """The data, as files that numpy reads.

    flat: rows of all taps, [tokens, taps, width] uint16, examples one after another in written order. starts: [examples + 1]
    int64, where each begins there; offsets: [examples], its physical row in the arrays of the store; order: [examples],
    the examples as our stream gave them. budget: bytes that a peer with a cache may hold. pass_seconds: a pass ends at the
    first batch after that.
    """

    flat: Path
    starts: Path
    offsets: Path
    order: Path
    store: Path
    arrays: list[str]
    work: Path
    taps: int
    width: int
    batch: int
    budget: int
    passes: int
    pass_seconds: float
    seed: int
    variant: str = ""

    @classmethod
    def load(cls, path: str) -> Job:
        """The job of a file, as `save` wrote it."""
        fields = json.loads(Path(path).read_text("utf-8"))
        places = {name: Path(fields[name]) for name in ("flat", "starts", "offsets", "order", "store", "work")}
        return cls(**(fields | places))

    def save(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self), default=str), "utf-8")

    @cached_property
    def rows(self) -> NDArray[np.uint16]:
        """[tokens, taps, width], mapped."""
        return np.memmap(self.flat, dtype=np.uint16, mode="r").reshape(-1, self.taps, self.width)

    def numbers(self, path: Path) -> NDArray[np.int64]:
        """A file of int64."""
        return np.fromfile(path, dtype=np.int64)

    def examples(self) -> Iterator[tuple[int, NDArray[np.uint16]]]:
        """Every example in written order: its number and rows [n, taps, width]."""
        starts = self.numbers(self.starts).tolist()
        for number, (first, stop) in enumerate(itertools.pairwise(starts)):
            yield number, self.rows[first:stop]

    def batches(self) -> list[list[int]]:
        """The batches that our stream gave, as lists of examples."""
        order = self.numbers(self.order).tolist()
        return [order[first : first + self.batch] for first in range(0, len(order), self.batch)]


def given() -> Job:
    """The job named on the command line."""
    return Job.load(sys.argv[1])


def run(
    job: Job,
    version: str,
    setting: str,
    epoch: Epoch,
    files: list[Path],
    *,
    restart: Callable[[], None] = lambda: None,
    **more: Any,
) -> None:
    """Time passes of `epoch` and print the findings as one line of JSON.

    epoch: gives (examples, rows [...]) batch by batch, as the peer recommends. files: what it reads; restart: lets go of
    what would keep them in the page cache. First a pass that adds up all numbers, then warm passes, then passes that begin
    with the files out of the page cache.
    """
    total, examples, _, _ = _one_pass(job, epoch(0), add=True)
    warm = [_one_pass(job, epoch(1 + number), add=False) for number in range(job.passes)]
    cold, resident = [], []
    for number in range(job.passes):
        restart()
        disk.forget(files)
        resident.append(disk.resident_share(files))
        cold.append(_one_pass(job, epoch(1 + job.passes + number), add=False))
    findings = {
        "version": version,
        "setting": setting,
        "warm": [count / seconds for _, count, seconds, _ in warm],
        "cold": [count / seconds for _, count, seconds, _ in cold],
        "resident": max(resident),
        "checked_examples": examples,
        "checked_sum": total,
        "examples": warm[-1][1],
        "seconds": sum(seconds for _, _, seconds, _ in warm),
        "bytes": warm[-1][3],
        "stored_bytes": sum(path.stat().st_size for path in files),
    }
    print(json.dumps(findings | more), flush=True)


def _one_pass(job: Job, batches: Iterator[tuple[int, NDArray[np.uint16]]], *, add: bool) -> tuple[int, int, float, int]:
    total = examples = size = 0
    begun = time.perf_counter()
    for count, values in batches:
        examples += count
        size += values.nbytes
        if add:
            total += int(values.sum(dtype=np.uint64))
        if time.perf_counter() - begun > job.pass_seconds:
            break
    return total, examples, time.perf_counter() - begun, size


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def packed(arrays: list[NDArray[np.uint16]]) -> NDArray[np.uint16]:
    """The rows of some examples, [n, taps, width] each, one after another."""
    return np.concatenate(arrays)


def compare_orders(batches: dict[str, list[list[int]]]) -> dict[str, dict[str, int | str]]:
    """What the global batches of an epoch are, by `ranks x workers`; the order inside a batch is left out.

    digest: of all batches, full: of all but the last; lost, repeated: examples of the first setting that are missing, or that
    come again.
    """
    found: dict[str, dict[str, int | str]] = {}
    every = set(itertools.chain(*next(iter(batches.values()))))
    for setting, order in batches.items():
        digests = [hashlib.sha256(np.sort(np.asarray(batch, "<i8")).tobytes()).digest() for batch in order]
        served = list(itertools.chain(*order))
        found[setting] = {
            "digest": hashlib.sha256(b"".join(digests)).hexdigest()[:16],
            "full": hashlib.sha256(b"".join(digests[:-1])).hexdigest()[:16],
            "batches": len(order),
            "lost": len(every - set(served)),
            "repeated": len(served) - len(set(served)),
        }
    return found
