"""What stage one costs: the early layers over the measured examples, as extraction runs them, without writing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from ...stages.device import choose_device
from ...stages.streaming_front import front_of
from ...stages.subject import load_model
from ..live import as_stored
from .inputs import batches_for, settings_of
from .measure import synchronize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ...storage import Store
    from ..recipe import Recipe
    from .examples import Examples


def forward(recipe: Recipe, store: Store, batches: Sequence[Examples]) -> Callable[[], tuple[int, float]]:
    """Model and rows made ready; what is called gives examples and seconds. The first batch warms up."""
    device = choose_device(recipe.train.device)
    settings = settings_of(store.producer)
    loaded = as_stored(load_model(settings, device), store.producer["model"])
    taps = {name: stream.taps for name, stream in store.plan.splits["train"].streams.items()}
    front, given, table = front_of(loaded, taps), batches_for(store.producer, loaded), store.examples("train")

    def run(examples: Examples) -> None:
        rows = table.rows(examples)
        for _ in front.run(batch for _, batch in given.forwards("train", rows, settings.batch_tokens)):
            pass
        synchronize(device)

    def timed() -> tuple[int, float]:
        examples = np.concatenate(batches)
        run(batches[0])
        begun = time.perf_counter()
        run(examples)
        return len(examples), time.perf_counter() - begun

    return timed
