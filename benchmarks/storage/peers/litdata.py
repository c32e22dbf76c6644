"""litdata: an optimised data set of arrays, its own shuffle and StreamingDataLoader; and whether its order of global batches
depends on ranks and workers.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from litdata import StreamingDataLoader, StreamingDataset, TemporalArrayLoader, optimize

from .job import compare_orders, files_below, given, packed, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

ORDER_ITEMS = 2048

job = given()
KIND, _, WORKERS = job.variant.partition(" ")
folder = job.work / "litdata"
starts = job.numbers(job.starts)
loaders: list[StreamingDataLoader] = []


def item(number: int) -> dict[str, Any]:
    """The rows of one example."""
    return {"taps": np.ascontiguousarray(job.rows[starts[number] : starts[number + 1]])}


def number_only(number: int) -> dict[str, Any]:
    """One item of the small data set whose order is looked at."""
    return {"example": number}


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of packed rows."""
    arrays = [np.asarray(one["taps"]) for one in items]
    return {"lengths": [len(array) for array in arrays], "taps": packed(arrays)}


def numbers(items: list[dict[str, Any]]) -> list[int]:
    """A batch of numbers."""
    return [int(one["example"]) for one in items]


def epoch(_: int) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """Its own batches of the next epoch."""
    for batch in loaders[0]:
        yield len(batch["lengths"]), np.asarray(batch["taps"])


def order_matrix() -> dict[str, list[list[int]]]:
    """The global batches of an epoch by `ranks x workers`, by its own loader with the environment variables that it reads; the
    same global batch size for all.
    """
    small = str(job.work / "order")
    optimize(number_only, list(range(ORDER_ITEMS)), small, chunk_size=64, num_workers=1)
    found = {}
    for ranks in (1, 2, 4):
        for workers in (1, 2, 4):
            by_rank = []
            for rank in range(ranks):
                os.environ |= {"WORLD_SIZE": str(ranks), "GLOBAL_RANK": str(rank), "NNODES": "1"}
                data = StreamingDataset(small, shuffle=True, seed=job.seed)
                options = {"batch_size": job.batch // ranks, "num_workers": workers, "collate_fn": numbers}
                by_rank.append(list(StreamingDataLoader(data, **options, multiprocessing_context="fork")))
            parts = itertools.zip_longest(*by_rank, fillvalue=[])
            found[f"{ranks}x{workers}"] = [list(itertools.chain(*part)) for part in parts]
    for name in ("WORLD_SIZE", "GLOBAL_RANK", "NNODES"):
        del os.environ[name]
    return found


def open_loader() -> StreamingDataLoader:
    """The data set, shuffled, and its loader."""
    options = {"shuffle": True, "drop_last": False, "seed": job.seed, **item_loader()}
    data = StreamingDataset(str(folder), **options)
    workers = {"num_workers": int(WORKERS), "multiprocessing_context": "fork" if int(WORKERS) else None}
    return StreamingDataLoader(data, batch_size=job.batch, collate_fn=collate, **workers)


def restart() -> None:
    """Let go of mapped chunks, which cannot be put out of the page cache."""
    loaders.clear()
    gc.collect()
    loaders.append(open_loader())


def item_loader() -> dict[str, Any]:
    """Its layout for arrays of differing length, or its default one."""
    return {"item_loader": TemporalArrayLoader()} if KIND == "temporal" else {}


if __name__ == "__main__":
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(job.work / "cache")
    os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(job.work / "cache-data")
    optimize(item, list(range(len(starts) - 1)), str(folder), chunk_bytes="64MB", num_workers=1, **item_loader())
    matrix = order_matrix()
    shutil.rmtree(job.work / "cache", ignore_errors=True)
    restart()
    setting = f"{KIND} layout in chunks of 64 MB, its shuffle, StreamingDataLoader with {WORKERS} workers"
    run(
        job,
        version("litdata"),
        setting,
        epoch,
        files_below(folder),
        restart=restart,
        order=compare_orders(matrix),
    )
