"""The examples that every way sees, and what a live model is given of them."""

from __future__ import annotations

from itertools import chain, count, islice
from typing import TYPE_CHECKING

import numpy as np

from ...storage import Stream
from ...storage.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...storage import ExampleTable, Store
    from ..recipe_sections import Data

    Examples = NDArray[np.int64]


def training_batches(store: Store, data: Data, steps: int) -> list[Examples]:
    """The first `steps` batches of training, in the order that stage two reads them, over as many epochs as that takes: by
    their places in written order. No data is read. Raises DataError for a store without a training split.
    """
    if "train" not in store.plan.splits:
        raise DataError(f"{store.root} holds no training split; there is {', '.join(store.plan.splits)}")
    streams = store.plan.splits["train"].streams
    stream = Stream(
        store,
        "train",
        {name: known.taps[:1] for name, known in streams.items()},
        batch_examples=data.batch_examples,
        batch_tokens=data.batch_tokens,
        window=data.window,
        budget_bytes=int(data.read_budget),
        seed=data.seed,
    )
    return list(islice(chain.from_iterable(map(stream.examples, count())), steps))


def labelled(table: ExampleTable, examples: Examples) -> Examples:
    """Those that say what is right."""
    known = ~np.isnan(table.label[examples]) | (table.gold[examples] >= 0)
    return examples[known]


def tokens_a_segment(table: ExampleTable, examples: Examples) -> dict[str, tuple[float, int]]:
    """Mean and largest number of tokens of the segments of some examples, by stream."""
    found = {}
    for name, lengths in table.lengths.items():
        starts = lengths.starts()
        own = np.concatenate([lengths.values[starts[each] : starts[each + 1]] for each in examples.tolist()])
        found[name] = (float(own.mean()), int(own.max())) if len(own) else (0.0, 0)
    return found
