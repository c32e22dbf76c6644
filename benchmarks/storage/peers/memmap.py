"""numpy alone: one flat file of [tokens, taps, width], mapped, an example a slice at a random place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .job import given, packed, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

job = given()
batches = job.batches()
if job.variant == "random":
    order = np.random.default_rng(job.seed).permutation(len(job.numbers(job.order)))
    batches = [order[first : first + job.batch].tolist() for first in range(0, len(order), job.batch)]
starts = job.numbers(job.starts).tolist()


def epoch(_: int) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """Our own batches, or random ones. Mapped anew, since pages that are mapped cannot be put out of the page cache."""
    flat = np.memmap(job.flat, dtype=np.uint16, mode="r")
    rows = flat.reshape(-1, job.taps, job.width)
    for batch in batches:
        yield len(batch), packed([rows[starts[i] : starts[i + 1]] for i in batch])


index = "a random permutation" if job.variant == "random" else "our order"
run(job, np.__version__, f"one flat file, all taps of a token together, {index}, no checks", epoch, [job.flat])
