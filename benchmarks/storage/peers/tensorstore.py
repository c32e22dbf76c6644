"""tensorstore: our own arrays with its chunk cache, or (variant `own`) one array of its own, laid out by token."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorstore as ts

from .job import files_below, given, packed, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

OWN_ROWS = 16  # tokens of a chunk, 320 KB at 13 taps of 768: about an example

job = given()
batches = job.batches()
starts = job.numbers(job.starts).tolist()
offsets = job.numbers(job.offsets).tolist()


def opened(path: Path, **more: Any) -> Any:
    """An array, with a cache of its own of the budget's size, checked again only when opened."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}, "recheck_cached_data": "open"}
    return ts.open(spec, **more).result()


def our_arrays(_: int) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """Our own batches: every read of a batch in flight at once; a chunk stays in the cache for the block's other batches."""
    context = ts.Context({"cache_pool": {"total_bytes_limit": job.budget}})
    arrays = [opened(job.store / path, context=context, read=True) for path in job.arrays]
    for batch in batches:
        counts = [starts[i + 1] - starts[i] for i in batch]
        out = np.empty((len(arrays), sum(counts), job.width), np.uint16)
        ends = np.cumsum(counts).tolist()
        futures = [
            (tap, end - count, end, array[offsets[i] : offsets[i] + count].read(order="C"))
            for tap, array in enumerate(arrays)
            for i, count, end in zip(batch, counts, ends, strict=True)
        ]
        for tap, first, end, future in futures:
            out[tap, first:end] = future.result()
        yield len(batch), out


def own_array(_: int) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """Our own batches: one read an example, all of a batch in flight at once."""
    array = opened(job.work / "own", context=ts.Context({"cache_pool": {"total_bytes_limit": job.budget}}), read=True)
    for batch in batches:
        futures = [array[starts[i] : starts[i + 1]].read(order="C") for i in batch]
        yield len(batch), packed([future.result() for future in futures])


def convert() -> None:
    """[tokens, taps, width], uncompressed, small chunks in large shards."""
    tokens = len(job.rows)
    shard = OWN_ROWS * 256
    codecs = {"chunk_shape": [OWN_ROWS, job.taps, job.width], "codecs": [{"name": "bytes"}]}
    array = opened(
        job.work / "own",
        create=True,
        dtype=ts.uint16,
        shape=[tokens, job.taps, job.width],
        chunk_layout=ts.ChunkLayout(write_chunk_shape=[shard, job.taps, job.width]),
        codec=ts.CodecSpec({"driver": "zarr3", "codecs": [{"name": "sharding_indexed", "configuration": codecs}]}),
    )
    for first in range(0, tokens, shard):
        array[first : min(first + shard, tokens)].write(job.rows[first : first + shard]).result()


if job.variant == "own":
    convert()
    setting = (
        f"its own zarr3 array [token, tap, width], {OWN_ROWS} tokens a chunk, in shards; a batch of reads in flight"
    )
    run(job, version("tensorstore"), setting, own_array, files_below(job.work / "own"))
else:
    files = [path for place in job.arrays for path in files_below(job.store / place)]
    setting = f"our arrays, all reads of a batch in flight, cache_pool of {job.budget >> 20} MiB, our order"
    run(job, version("tensorstore"), setting, our_arrays, files)
