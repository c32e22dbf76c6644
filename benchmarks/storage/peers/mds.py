"""mosaicml-streaming: an MDS sample an example, its own shuffle (py1e) and StreamingDataLoader; and whether its order of
global batches depends on ranks and workers.
"""

from __future__ import annotations

from . import without_cuda  # noqa: F401

# isort: split
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.batching import generate_work
from streaming.base.util import clean_stale_shared_memory
from streaming.base.world import World

from .job import compare_orders, files_below, given, packed, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

job = given()
WORKERS = int(job.variant or 0)
folder = job.work / "mds"


def convert() -> None:
    """One sample an example: its number and its rows, no compression."""
    columns = {"example": "int64", "taps": "ndarray:uint16"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=64 << 20) as writer:
        for number, rows in job.examples():
            writer.write({"example": np.int64(number), "taps": np.ascontiguousarray(rows)})


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of packed rows. The loader takes the length of the first entry for the number of samples."""
    arrays = [sample["taps"] for sample in samples]
    return {"lengths": [len(array) for array in arrays], "taps": packed(arrays)}


def dataset(**options: Any) -> StreamingDataset:
    """The data set, shuffled as by default."""
    return StreamingDataset(
        local=str(folder),
        shuffle=True,
        shuffle_seed=job.seed,
        num_canonical_nodes=1,
        shuffle_block_size=4_000_000,  # the default for one canonical node
        **options,
    )


def epoch(_: int) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """Its own batches of the next epoch."""
    for batch in loader:
        yield len(batch["lengths"]), np.asarray(batch["taps"])


def order_matrix(plan: StreamingDataset) -> dict[str, list[list[int]]]:
    """The global batches of an epoch by `ranks x workers`, by its own planning function and World; the same global batch size
    for all.
    """
    found = {}
    for ranks in (1, 2, 4):
        plan.batch_size = job.batch // ranks
        for workers in (1, 2, 4):
            # [ranks, workers, batches, samples]: a rank takes a batch of each of its workers in turn.
            work = generate_work(plan.batching_method, plan, World(1, ranks, workers, 0), 0, 0)[0]
            batches = work.transpose(2, 1, 0, 3).reshape(-1, job.batch)
            found[f"{ranks}x{workers}"] = [batch[batch >= 0].tolist() for batch in batches if (batch >= 0).any()]
    return found


if __name__ == "__main__":
    clean_stale_shared_memory()
    convert()
    matrix = order_matrix(dataset(batch_size=job.batch))
    data = dataset(batch_size=job.batch)
    loader = StreamingDataLoader(data, batch_size=job.batch, num_workers=WORKERS, collate_fn=collate)
    setting = f"MDS of 64 MiB shards, its shuffle, StreamingDataLoader with {WORKERS} workers"
    run(job, version("mosaicml-streaming"), setting, epoch, files_below(folder), order=compare_orders(matrix))
