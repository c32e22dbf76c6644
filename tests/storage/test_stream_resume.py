"""A stream stopped anywhere goes on elsewhere, and leaves nothing behind."""

import gc
import json
import os
import random
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sherl_cache.storage import ReadBuffers, Store, Stream
from sherl_cache.storage.errors import StoreCorrupt, StoreStale
from sherl_cache.storage.session import Batch

TAPS = {"encoder": (0, 3), "decoder": (1,)}
SIZES = [{"batch_examples": 7}, {"batch_tokens": 60}]


@pytest.fixture(scope="module")
def store(builders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return builders.Case().build(tmp_path_factory.mktemp("resume") / "store")


def stream_of(store: Store, split: str = "train", **options: Any) -> Stream:
    settings = {"window": 3, "seed": 5, "in_memory": False, **options}
    if "buffers" not in settings:
        settings.setdefault("budget_bytes", 1 << 24)
    if "batch_tokens" not in settings:
        settings.setdefault("batch_examples", 7)
    return Stream(store, split, TAPS, **settings)


def content(batches: list[Batch]) -> list[Any]:
    """Everything in batches, comparable."""
    return [
        (b.examples.tolist(), [(r.taps.tobytes(), r.lengths.tolist(), r.counts.tolist()) for r in b.streams.values()])
        for b in batches
    ]


def rank_content(store: Store, epoch: int, start: int, ranks: int, **options: Any) -> list[list[int]]:
    """Examples of each global batch, from the slices of all ranks."""
    streams = [stream_of(store, rank=rank, ranks=ranks, **options) for rank in range(ranks)]
    slices = [[batch.examples.tolist() for batch in stream.epoch(epoch, start)] for stream in streams]
    return [[example for part in parts for example in part] for parts in zip(*slices, strict=True)]


@pytest.mark.parametrize("size", SIZES)
def test_stopped_anywhere_the_batches_go_on_bit_equal_with_other_threads(store: Store, size: dict[str, int]) -> None:
    whole = content([batch.copy() for batch in stream_of(store, **size).epoch(1)])
    for done in range(len(whole) + 1):
        stopped = stream_of(store, threads=done % 3, **size)
        source = stopped.epoch(1)
        for _ in range(done):
            next(source)
        state = json.dumps(stopped.state_dict())
        assert len(state) < 1024
        resumed = stream_of(store, threads=(done + 1) % 4, **size)
        resumed.load_state_dict(json.loads(state))
        found = resumed.state_dict()
        if done:
            assert (found["epoch"], found["batch"]) == (1, done)
        assert content([batch.copy() for batch in resumed.epoch(1, done)]) == whole[done:]


@pytest.mark.parametrize("size", SIZES)
def test_stopped_and_resumed_with_other_ranks_no_example_is_lost_or_repeated(
    store: Store, size: dict[str, int]
) -> None:
    draw = random.Random(0)
    whole = rank_content(store, 0, 0, 1, **size)
    for _ in range(8):
        stop = draw.randrange(len(whole) + 1)
        before = rank_content(store, 0, 0, draw.choice([1, 2, 3, 8]), threads=draw.choice([0, 1, 2]), **size)[:stop]
        after = rank_content(store, 0, stop, draw.choice([1, 2, 4]), threads=draw.choice([0, 1, 4]), **size)
        assert before + after == whole


def test_the_state_is_the_same_for_every_rank_and_number_of_threads(store: Store) -> None:
    states = []
    for options in ({}, {"rank": 2, "ranks": 3}, {"threads": 4}, {"threads": 0, "budget_bytes": 1 << 25}):
        stream = stream_of(store, **options)
        source = stream.epoch(1)
        for _ in range(3):
            next(source)
        states.append(stream.state_dict())
    assert all(state == states[0] for state in states)


@pytest.mark.parametrize("size", SIZES)
def test_resuming_reads_one_block_only(store: Store, size: dict[str, int]) -> None:
    plan = store.split("train")
    block = 3 * sum(len(TAPS[s]) * (store.chunk_bytes(plan.streams[s]) + 4) for s in TAPS)
    for start in range(0, stream_of(store, **size).batches_per_epoch, 3):
        stream = stream_of(store, threads=0, **size)
        next(stream.epoch(0, start))
        assert stream.read_bytes <= block * (1 if "batch_tokens" in size else 2)  # a batch may end in the next block


@pytest.mark.parametrize("name", ["seed", "batch_examples", "batch_tokens", "window", "order_key", "shuffle"])
def test_a_state_of_another_order_is_refused(store: Store, name: str) -> None:
    stream = stream_of(store)
    state = {**stream.state_dict(), name: "0" * 64 if name == "order_key" else 99}
    with pytest.raises(StoreStale, match=name):
        stream.load_state_dict(state)


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("sherl-cache-read")]


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="descriptors are counted in /proc")
def test_an_iterator_dropped_half_way_leaves_no_thread_and_no_descriptor(
    store: Store, threads: int, in_memory: bool
) -> None:
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    stream = stream_of(store, threads=threads, in_memory=in_memory)
    source = stream.epoch(0)
    next(source)
    assert len(readers()) <= threads  # the pool makes as many as there is work for
    assert bool(readers()) == bool(threads)
    assert len(os.listdir("/proc/self/fd")) > len(before)
    del source
    gc.collect()
    assert not readers()
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_flipped_byte_is_met_before_a_batch_with_it(
    builders: ModuleType, tmp_path: Path, threads: int, in_memory: bool
) -> None:
    builders.Case().build(tmp_path / "store")
    path = tmp_path / "store/train/encoder/h03/c/1/0"
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)
    store = Store.open(tmp_path / "store")
    plan, table = store.split("train"), store.examples("train")
    damaged = plan.groups_per_unit  # the first row group of the second unit
    hurt = set(range(int(table.first_examples[damaged]), int(table.first_examples[damaged + 1])))
    stream = stream_of(store, threads=threads, in_memory=in_memory, batch_examples=3)
    seen: list[int] = []
    source = stream.epoch(0)
    with pytest.raises(
        StoreCorrupt, match=rf"train/encoder/h03.*chunk 0.*row group {damaged}, examples {min(hurt)} to"
    ):
        seen.extend(int(example) for batch in source for example in batch.examples)
    assert not hurt & set(seen)
    assert not readers()
    assert next(source, None) is None
    again = stream_of(store, threads=threads, in_memory=in_memory)
    with pytest.raises(StoreCorrupt, match="h03"):
        list(again.epoch(1))


def test_validation_in_the_middle_of_training_shares_the_buffers_and_changes_no_batch(store: Store) -> None:
    expected = content([batch.copy() for batch in stream_of(store).epoch(0)])
    allocated: list[int] = []

    def allocate(shape: tuple[int, ...], dtype: Any) -> Any:
        allocated.append(shape[0])
        return np.empty(shape, dtype)

    buffers = ReadBuffers(1 << 20, allocate)
    train = stream_of(store, buffers=buffers)
    validation = stream_of(store, "validation", buffers=buffers, shuffle=False)
    alone = content([batch.copy() for batch in stream_of(store, "validation", shuffle=False).epoch(0)])
    found = []
    for number, batch in enumerate(train.epoch(0)):
        found.append(batch.copy())
        if number % 3 == 1:
            assert content([batch.copy() for batch in validation.epoch(0)]) == alone
            assert len(readers()) == 0
    assert content(found) == expected
    assert len(allocated) == 1
    assert buffers.held_bytes == allocated[0] <= buffers.budget_bytes


def test_two_iterators_of_one_stream_may_take_turns(store: Store) -> None:
    stream = stream_of(store)
    one, other = [], []
    for a, b in zip(stream.epoch(0), stream.epoch(1), strict=True):
        other.append(b.copy())
        one.append(a.examples.tolist())
    assert one == [batch.examples.tolist() for batch in stream_of(store).epoch(0)]
    assert content(other) == content([batch.copy() for batch in stream_of(store).epoch(1)])
