"""zarr-python, one slice an example and tap of our own arrays; variant `zarrs` with the Rust codec pipeline."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import zarr

from .job import given, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

job = given()
batches = job.batches()
starts = job.numbers(job.starts).tolist()
offsets = job.numbers(job.offsets).tolist()
name = f"zarr {version('zarr')}"
if job.variant == "zarrs":
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    name += f", zarrs {version('zarrs')}"
arrays = [zarr.open_array(job.store / path, mode="r") for path in job.arrays]


def epoch(_: int) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """Our own batches."""
    for batch in batches:
        counts = [starts[i + 1] - starts[i] for i in batch]
        out = np.empty((len(arrays), sum(counts), job.width), np.uint16)
        for tap, array in enumerate(arrays):
            first = 0
            for i, count in zip(batch, counts, strict=True):
                out[tap, first : first + count] = array[offsets[i] : offsets[i] + count]
                first += count
        yield len(batch), out


files = [path for place in job.arrays for path in sorted((job.store / place).rglob("*")) if path.is_file()]
run(job, name, "our arrays, opened once, a slice for each example and tap", epoch, files)
