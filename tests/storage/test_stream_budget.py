"""The read budget bounds everything that reading holds."""

import gc
import random
import re
import tracemalloc
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sherl_cache.storage import ReadBuffers, Store, Stream
from sherl_cache.storage.errors import BudgetTooSmall, InvalidInput

TAPS = {"encoder": (0, 3), "decoder": (1,)}


@pytest.fixture(scope="module")
def store(builders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Store:
    case = builders.Case(
        examples={"train": 700, "validation": 100},
        widths={"encoder": 128, "decoder": 64},
        chunk_bytes=(16384, 65536),
        unit_memory=1 << 20,
    )
    return case.build(tmp_path_factory.mktemp("budget") / "store")


def stream_of(store: Store, **options: Any) -> Stream:
    settings = {"batch_examples": 16, "window": 4, "seed": 1, **options}
    return Stream(store, settings.pop("split", "train"), TAPS, **settings)


def test_a_budget_too_small_names_the_window_that_fits(store: Store) -> None:
    with pytest.raises(BudgetTooSmall, match="even a window of 1"):
        stream_of(store, budget_bytes=1)
    budget = 700_000
    with pytest.raises(BudgetTooSmall, match=r"needs ([\d,]+) bytes") as caught:
        stream_of(store, window=20, budget_bytes=budget)
    found = re.search(r"needs ([\d,]+) bytes \(.*a window of (\d+) groups fits", str(caught.value))
    assert found
    needed, fits = int(found[1].replace(",", "")), int(found[2])
    assert fits >= 1
    stream_of(store, window=fits, budget_bytes=budget)
    with pytest.raises(BudgetTooSmall):
        stream_of(store, window=fits + 1, budget_bytes=budget)
    stream_of(store, window=20, budget_bytes=needed)
    with pytest.raises(BudgetTooSmall):
        stream_of(store, window=20, budget_bytes=needed - 1)


def test_where_two_blocks_do_not_fit_one_is_read_at_a_time_and_that_is_said(store: Store) -> None:
    needs = stream_of(store, budget_bytes=1 << 30).needs
    one = stream_of(store, budget_bytes=needs.by_blocks(1))
    two = stream_of(store, budget_bytes=needs.by_blocks(2))
    assert (one.report().mode, two.report().mode) == ("block", "ahead")
    for a, b in zip(one.epoch(0), two.epoch(0), strict=True):
        np.testing.assert_array_equal(a.examples, b.examples)
        np.testing.assert_array_equal(a.streams["encoder"].taps, b.streams["encoder"].taps)


class Counted:
    """numpy.empty that counts; tracemalloc sees the same bytes."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, shape: tuple[int, ...], dtype: Any) -> Any:
        self.calls.append(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return np.empty(shape, dtype)


@pytest.mark.parametrize("seed", range(3))
def test_all_that_reading_allocates_stays_within_any_budget(store: Store, seed: int) -> None:
    draw = random.Random(seed)
    modes = set()
    list(stream_of(store, budget_bytes=1 << 26).epoch(0))  # indexes, lazy imports and caches are there
    for _ in range(6):
        size = draw.choice([{"batch_examples": draw.choice([1, 16, 200])}, {"batch_tokens": draw.choice([64, 900])}])
        ranks = draw.choice([1, 3])
        options = {
            "batch_examples": None,
            **size,
            "window": draw.choice([1, 2, 5, 9]),
            "threads": draw.choice([0, 1, 3]),
            "ranks": ranks,
            "rank": draw.randrange(ranks),
            "segments": draw.choice([None, {"decoder": "gold"}]),
        }
        needs = stream_of(store, budget_bytes=1 << 30, **options).needs
        choices = [needs.by_blocks(1), needs.by_blocks(2), draw.randint(needs.by_blocks(1), 2 * needs.by_blocks(2))]
        budget = draw.choice([*choices, needs.in_memory])
        allocate = Counted()
        stream = stream_of(store, budget_bytes=budget, allocate=allocate, **options)
        gc.collect()
        tracemalloc.start()
        try:
            for epoch in (0, 1):
                for _ in stream.epoch(epoch):
                    assert stream.buffers.held_bytes <= budget
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak <= budget, (options, needs)
        assert len(allocate.calls) == 1
        assert allocate.calls[0] == stream.report().buffer_bytes
        modes.add(stream.report().mode)
    assert len(modes) > 1


def test_one_budget_bounds_the_streams_that_share_it(store: Store) -> None:
    train = stream_of(store, budget_bytes=1 << 30).needs
    held = stream_of(store, split="validation", budget_bytes=1 << 30).needs
    for budget, modes in {
        max(train.by_blocks(2), held.by_blocks(2)): ("ahead", "ahead"),
        train.by_blocks(1) + held.in_memory: (None, "memory"),
        train.in_memory + held.in_memory: ("memory", "memory"),
    }.items():
        allocate = Counted()
        buffers = ReadBuffers(budget, allocate)
        streams = [
            stream_of(store, buffers=buffers),
            stream_of(store, split="validation", buffers=buffers, shuffle=False),
        ]
        for epoch in (0, 1):
            for stream in streams:
                for _ in stream.epoch(epoch):
                    assert buffers.held_bytes <= budget
        for stream, mode in zip(streams, modes, strict=True):
            assert mode in (None, stream.report().mode)


def test_what_a_stream_kept_in_memory_is_free_again_when_it_is_gone(store: Store) -> None:
    needs = stream_of(store, budget_bytes=1 << 30).needs
    buffers = ReadBuffers(needs.in_memory)
    stream = stream_of(store, buffers=buffers)
    next(stream.epoch(0))
    assert buffers.left_bytes == 0
    del stream
    gc.collect()
    assert buffers.left_bytes == buffers.budget_bytes
    assert stream_of(store, buffers=buffers).report().mode == "ahead"


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least 1"):
        ReadBuffers(0)
