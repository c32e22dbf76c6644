"""Batches of a stream equal direct reads, in an order that nothing but its keys changes."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from places import MakeCopy

from sherl_cache.storage import Batch, Store, Stream
from sherl_cache.storage.errors import BudgetTooSmall, DataError, InvalidInput, StoreStale

TAPS = {"encoder": (0, 3), "decoder": (1,)}
BUDGET = 1 << 24


@pytest.fixture(scope="module")
def store(builders: ModuleType, copied: MakeCopy, tmp_path_factory: pytest.TempPathFactory) -> Store:
    built = builders.Case().build(tmp_path_factory.mktemp("stream") / "store")
    return Store.open(copied(built.root).place)


def stream_of(store: Store, split: str = "train", **options: Any) -> Stream:
    settings = {"batch_examples": 7, "window": 3, "budget_bytes": BUDGET, "seed": 5, **options}
    return Stream(store, split, settings.pop("taps", TAPS), **settings)


def assert_equal_batches(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.examples, b.examples)
        for stream in a.streams:
            np.testing.assert_array_equal(a.streams[stream].taps, b.streams[stream].taps)
            np.testing.assert_array_equal(a.streams[stream].lengths, b.streams[stream].lengths)
            np.testing.assert_array_equal(a.streams[stream].counts, b.streams[stream].counts)


def assert_batch_equals_direct_reads(store: Store, batch: Batch, stream: Stream, gold: bool = False) -> None:
    """The oracle: every segment of every example, cut out of whole arrays at the offsets of the table."""
    table = store.examples(stream.split)
    for name, taps in stream.taps.items():
        packed = batch.streams[name]
        assert packed.taps.shape[:2] == (len(taps), packed.lengths.sum())
        starts, offsets = table.lengths[name].starts(), table.offsets(name)
        wanted = []
        for example in batch.examples:
            segments = range(starts[example], starts[example + 1])
            if gold and name == "decoder":
                right = int(table.gold[example])
                segments = segments[right : right + 1] if right >= 0 else segments[:0]
            wanted.append([(offsets[s], table.lengths[name].values[s]) for s in segments])
        np.testing.assert_array_equal(packed.counts, [len(found) for found in wanted])
        np.testing.assert_array_equal(packed.lengths, [length for found in wanted for _, length in found])
        for depth, tap in enumerate(taps):
            groups = range(store.split(stream.split).groups)
            whole = np.concatenate([store.chunk(stream.split, name, tap, group) for group in groups])
            pieces = [whole[start : start + length] for found in wanted for start, length in found]
            np.testing.assert_array_equal(packed.taps[depth], np.concatenate([whole[:0], *pieces]))


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("batch_examples", [1, 7, 1000])
@pytest.mark.parametrize("gold", [False, True])
def test_every_batch_equals_direct_reads(store: Store, split: str, batch_examples: int, gold: bool) -> None:
    chosen = {"decoder": "gold"} if gold else None
    stream = stream_of(store, split, batch_examples=batch_examples, segments=chosen)
    batches = list(stream.epoch(0))
    assert len(batches) == stream.batches_per_epoch
    assert all(len(batch.examples) == batch_examples for batch in batches[:-1])
    examples = np.concatenate([batch.examples for batch in batches])
    np.testing.assert_array_equal(np.sort(examples), np.arange(store.split(split).examples))
    for batch in batches:
        assert_batch_equals_direct_reads(store, batch, stream, gold)


def test_order_is_the_same_for_any_threads_and_budget(store: Store) -> None:
    expected = list(stream_of(store).epoch(2))
    for options in ({"threads": 3}, {"budget_bytes": 1 << 30}, {"threads": 2, "taps": TAPS}):
        assert_equal_batches(list(stream_of(store, **options).epoch(2)), expected)


def test_order_of_examples_does_not_depend_on_the_taps_read(store: Store) -> None:
    one = [batch.examples.tolist() for batch in stream_of(store).epoch(1)]
    other = [batch.examples.tolist() for batch in stream_of(store, taps={"encoder": (2,)}).epoch(1)]
    assert one == other


@pytest.mark.parametrize("changed", [{"seed": 6}, {"window": 2}, {"epoch": 1}])
def test_seed_window_and_epoch_change_the_order(store: Store, changed: dict[str, int]) -> None:
    changed = dict(changed)
    epoch = changed.pop("epoch", 0)
    one = np.concatenate([batch.examples for batch in stream_of(store).epoch(0)])
    other = np.concatenate([batch.examples for batch in stream_of(store, **changed).epoch(epoch)])
    assert not np.array_equal(one, other)


def test_without_shuffle_examples_come_in_written_order(store: Store) -> None:
    batches = list(stream_of(store, shuffle=False).epoch(0))
    np.testing.assert_array_equal(np.concatenate([batch.examples for batch in batches]), np.arange(60))


def test_resumed_in_mid_epoch_the_batches_are_the_same(store: Store) -> None:
    whole = list(stream_of(store).epoch(1))
    for done in range(len(whole) + 1):
        stopped = stream_of(store)
        source = stopped.epoch(1)
        for _ in range(done):
            next(source)
        resumed = stream_of(store, threads=2)
        resumed.load_state_dict(stopped.state_dict())
        state = resumed.state_dict()
        if done:
            assert state["epoch"] == 1
            assert state["batch"] == done
            assert_equal_batches(list(resumed.epoch(1, start_batch=int(state["batch"]))), whole[done:])


def test_resuming_reads_one_block_only(store: Store) -> None:
    stream = stream_of(store)
    next(stream.epoch(0))
    one_block = stream.read_bytes
    late = stream_of(store)
    next(late.epoch(0, start_batch=late.batches_per_epoch - 2))
    assert late.read_bytes <= one_block * 2


@pytest.mark.parametrize("name", ["seed", "batch_examples", "window", "order_key"])
def test_a_state_of_another_order_is_refused(store: Store, name: str) -> None:
    stream = stream_of(store)
    state = {**stream.state_dict(), name: "0" * 64 if name == "order_key" else 99}
    with pytest.raises(StoreStale, match=name):
        stream.load_state_dict(state)


def test_a_budget_too_small_names_the_window_that_fits(store: Store) -> None:
    with pytest.raises(BudgetTooSmall, match="even a window of 1"):
        stream_of(store, budget_bytes=1)
    with pytest.raises(BudgetTooSmall, match=r"need ([\d,]+) bytes") as caught:
        stream_of(store, window=20, budget_bytes=20_000)
    words = str(caught.value).split()
    fits = int(words[words.index("of", words.index("bytes;")) + 1])
    assert fits >= 1
    stream_of(store, window=fits, budget_bytes=20_000)
    with pytest.raises(BudgetTooSmall):
        stream_of(store, window=fits + 1, budget_bytes=20_000)


def test_memory_held_stays_within_the_budget_that_was_asked(store: Store) -> None:
    held: list[int] = []

    def allocate(shape: tuple[int, ...], dtype: Any) -> Any:
        held.append(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return np.empty(shape, dtype)

    needed = 1
    while True:
        try:
            stream = stream_of(store, budget_bytes=needed, allocate=allocate)
            break
        except BudgetTooSmall:
            needed += 256
    for epoch in range(4):
        held.clear()
        list(stream.epoch(epoch))
        blocks = [sum(held[i : i + len(TAPS)]) for i in range(0, len(held), len(TAPS))]
        assert max(blocks) < needed


def test_wrong_requests_are_refused(store: Store) -> None:
    with pytest.raises(DataError, match="h01"):
        stream_of(store, taps={"encoder": (1,)})
    with pytest.raises(DataError, match="'text'"):
        stream_of(store, taps={"text": (1,)})
    with pytest.raises(InvalidInput, match="batch_examples"):
        stream_of(store, batch_examples=0)
    with pytest.raises(InvalidInput, match="at least one stream"):
        stream_of(store, taps={})
    with pytest.raises(InvalidInput, match="gold or all"):
        stream_of(store, segments={"decoder": "some"})
    with pytest.raises(InvalidInput, match="batches"):
        stream_of(store).epoch(0, start_batch=1000)
