"""Batches of a stream equal direct reads, in an order that nothing but its keys changes."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import MakeCopy

from sherl_cache.storage import ENCODINGS, Batch, Store, Stream, StreamReport
from sherl_cache.storage.errors import DataError, InvalidInput

TAPS = {"encoder": (0, 3), "decoder": (1,)}
BUDGET = 1 << 24
NAMES = [*sorted(ENCODINGS), "int8", "bfloat16+zstd:1"]


@pytest.fixture(scope="module")
def stores(builders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    root = tmp_path_factory.mktemp("stream")
    return {name: builders.Case(encoding=name).build(root / name) for name in NAMES}


@pytest.fixture(scope="module")
def store(stores: dict[str, Store], copied: MakeCopy) -> Store:
    return Store.open(copied(stores["float32"].root).place)


def stream_of(store: Store, split: str = "train", **options: Any) -> Stream:
    settings = {"batch_examples": 7, "window": 3, "budget_bytes": BUDGET, "seed": 5, **options}
    return Stream(store, split, settings.pop("taps", TAPS), **settings)


def batches_of(stream: Stream, epoch: int = 0, start_batch: int = 0) -> list[Batch]:
    return [batch.copy() for batch in stream.epoch(epoch, start_batch)]


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
@pytest.mark.parametrize("in_memory", [False, True])
def test_every_batch_equals_direct_reads(
    store: Store, split: str, batch_examples: int, gold: bool, in_memory: bool
) -> None:
    chosen = {"decoder": "gold"} if gold else None
    stream = stream_of(store, split, batch_examples=batch_examples, segments=chosen, in_memory=in_memory)
    for epoch in (0, 1):  # first whole chunks, checked, then only what is wanted
        batches = batches_of(stream, epoch)
        assert len(batches) == stream.batches_per_epoch
        assert all(len(batch.examples) == batch_examples for batch in batches[:-1])
        examples = np.concatenate([batch.examples for batch in batches])
        np.testing.assert_array_equal(np.sort(examples), np.arange(store.split(split).examples))
        for batch in batches:
            assert_batch_equals_direct_reads(store, batch, stream, gold)


def joined(parts: list[Batch]) -> Batch:
    """The slices of all ranks put together again."""
    streams = {
        name: type(rows)(
            np.concatenate([part.streams[name].taps for part in parts], axis=1),
            np.concatenate([part.streams[name].lengths for part in parts]),
            np.concatenate([part.streams[name].counts for part in parts]),
        )
        for name, rows in parts[0].streams.items()
    }
    return Batch(np.concatenate([part.examples for part in parts]), streams)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    encoding=st.sampled_from(NAMES),
    taps=st.sampled_from([{"encoder": (2,)}, {"encoder": (0, 3), "decoder": (1,)}, {"decoder": (1,)}]),
    window=st.integers(1, 12),
    size=st.sampled_from([{"batch_examples": 1}, {"batch_examples": 5}, {"batch_examples": 40}, {"batch_tokens": 60}]),
    threads=st.sampled_from([0, 1, 2, 4]),
    ranks=st.sampled_from([1, 2, 3, 4, 8]),
    epoch=st.integers(0, 2),
    gold=st.booleans(),
    in_memory=st.booleans(),
    shuffle=st.booleans(),
)
def test_slices_of_all_ranks_make_the_batches_that_one_alone_reads(
    stores: dict[str, Store], encoding: str, taps: dict[str, Any], window: int, size: dict[str, int], threads: int,
    ranks: int, epoch: int, gold: bool, in_memory: bool, shuffle: bool,
) -> None:  # fmt: skip
    store = stores[encoding]
    segments = {"decoder": "gold"} if gold and "decoder" in taps else None
    common = {"taps": taps, "window": window, "segments": segments, "shuffle": shuffle, "batch_examples": None, **size}
    alone = stream_of(store, threads=0, in_memory=False, **common)
    whole = batches_of(alone, epoch)
    unread = stream_of(store, **common)
    assert [found.tolist() for found in unread.examples(epoch)] == [batch.examples.tolist() for batch in whole]
    assert unread.read_bytes == 0
    for batch in whole[:3]:
        assert_batch_equals_direct_reads(store, batch, alone, gold and "decoder" in taps)
    slices = []
    for rank in range(ranks):
        stream = stream_of(store, rank=rank, ranks=ranks, threads=threads, in_memory=in_memory, **common)
        list(stream.epoch(epoch + 1, max(stream.batches_in(epoch + 1) - 2, 0)))  # some chunks were seen before
        slices.append(batches_of(stream, epoch))
    assert_equal_batches([joined(list(parts)) for parts in zip(*slices, strict=True)], whole)
    for parts in zip(*slices, strict=True):
        counts = [len(part.examples) for part in parts]
        assert max(counts) - min(counts) <= 1


def test_order_is_the_same_for_any_threads_and_budget(store: Store) -> None:
    expected = batches_of(stream_of(store), 2)
    for options in ({"threads": 3}, {"budget_bytes": 1 << 30}, {"threads": 0, "in_memory": False}):
        assert_equal_batches(batches_of(stream_of(store, **options), 2), expected)


def test_order_of_examples_does_not_depend_on_the_taps_read(store: Store) -> None:
    for size in ({}, {"batch_examples": None, "batch_tokens": 50}):
        one = [batch.examples.tolist() for batch in stream_of(store, **size).epoch(1)]
        other = [batch.examples.tolist() for batch in stream_of(store, taps={"encoder": (2,)}, **size).epoch(1)]
        assert one == other


@pytest.mark.parametrize("changed", [{"seed": 6}, {"window": 2}, {"epoch": 1}])
@pytest.mark.parametrize("size", [{}, {"batch_examples": None, "batch_tokens": 50}])
def test_seed_window_and_epoch_change_the_order(store: Store, changed: dict[str, int], size: dict[str, int]) -> None:
    changed = dict(changed)
    epoch = changed.pop("epoch", 0)
    one = np.concatenate([batch.examples for batch in stream_of(store, **size).epoch(0)])
    other = np.concatenate([batch.examples for batch in stream_of(store, **changed, **size).epoch(epoch)])
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("size", [{}, {"batch_examples": None, "batch_tokens": 50}])
def test_without_shuffle_examples_come_in_written_order(store: Store, size: dict[str, int]) -> None:
    batches = batches_of(stream_of(store, shuffle=False, **size))
    np.testing.assert_array_equal(np.concatenate([batch.examples for batch in batches]), np.arange(60))


@pytest.mark.parametrize("taps", [(0,), (0, 3), (0, 2, 3)])
@pytest.mark.parametrize("in_memory", [False, True])
def test_bytes_read_are_those_of_the_taps_that_are_read(store: Store, taps: tuple[int, ...], in_memory: bool) -> None:
    stream = stream_of(store, taps={"encoder": taps}, in_memory=in_memory)
    list(stream.epoch(0))
    plan = store.split("train")
    chunk = store.chunk_bytes(plan.streams["encoder"]) + 4
    assert stream.report().read_bytes == len(taps) * plan.groups * chunk
    assert stream.report().verified_chunks == stream.report().chunks == len(taps) * plan.groups
    list(stream.epoch(1))
    rows = plan.streams["encoder"].tokens * 8 * 4 if store.scatters else plan.groups * chunk
    assert stream.read_bytes == len(taps) * (plan.groups * chunk + (0 if in_memory else rows))
    assert stream.report().verified_chunks == len(taps) * plan.groups


def test_a_second_epoch_from_memory_reads_nothing_and_says_so(store: Store) -> None:
    kept, read = stream_of(store), stream_of(store, in_memory=False)
    assert_equal_batches(batches_of(kept), batches_of(read))
    before = kept.report()
    assert isinstance(before, StreamReport)
    assert before.mode == "memory"
    assert read.report().mode == "ahead"
    for epoch in (1, 2):
        assert_equal_batches(batches_of(kept, epoch), batches_of(read, epoch))
    assert kept.report().read_bytes == before.read_bytes
    assert kept.report().chunks == before.chunks


def test_waiting_is_counted(store: Store) -> None:
    stream = stream_of(store, threads=0)
    list(stream.epoch(0))
    assert 0 < stream.report().waited_seconds == stream.waited_seconds


def test_wrong_requests_are_refused(store: Store) -> None:
    with pytest.raises(DataError, match="h01"):
        stream_of(store, taps={"encoder": (1,)})
    with pytest.raises(DataError, match="'text'"):
        stream_of(store, taps={"text": (1,)})
    with pytest.raises(InvalidInput, match="batch_examples"):
        stream_of(store, batch_examples=0)
    with pytest.raises(InvalidInput, match="one of the two"):
        stream_of(store, batch_tokens=100)
    with pytest.raises(InvalidInput, match="one of the two"):
        stream_of(store, batch_examples=None)
    with pytest.raises(InvalidInput, match="longest example of train has"):
        stream_of(store, batch_examples=None, batch_tokens=3)
    with pytest.raises(InvalidInput, match="rank 2 of 2"):
        stream_of(store, rank=2, ranks=2)
    with pytest.raises(InvalidInput, match="threads is -1"):
        stream_of(store, threads=-1)
    with pytest.raises(InvalidInput, match="budget_bytes"):
        stream_of(store, budget_bytes=None)
    with pytest.raises(InvalidInput, match="at least one stream"):
        stream_of(store, taps={})
    with pytest.raises(InvalidInput, match="gold or all"):
        stream_of(store, segments={"decoder": "some"})
    with pytest.raises(InvalidInput, match="batches"):
        stream_of(store).epoch(0, start_batch=1000)
