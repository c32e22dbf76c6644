"""What the system lacks, or does by halves, changes no batch."""

import os
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sherl_cache.storage import Store, Stream
from sherl_cache.storage.budget import ALIGNMENT, aligned
from sherl_cache.storage.buffers import Region
from sherl_cache.storage.readers import local
from sherl_cache.storage.readers.descriptors import Descriptors


@pytest.fixture(scope="module")
def store(builders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return builders.Case().build(tmp_path_factory.mktemp("systems") / "store")


def content(store: Store) -> list[Any]:
    """Two epochs, the first of whole chunks, the second of what is wanted; as rank 1 of 2, so that there are gaps."""
    taps = {"encoder": (0, 3), "decoder": (1,)}
    stream = Stream(
        store, "train", taps, batch_examples=7, window=3, budget_bytes=1 << 24, rank=1, ranks=2, in_memory=False
    )
    return [
        (batch.examples.tolist(), [rows.taps.tobytes() for rows in batch.streams.values()])
        for epoch in (0, 1)
        for batch in stream.epoch(epoch)
    ]


def test_without_preadv_and_fadvise_the_batches_are_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = content(store)
    monkeypatch.setattr(local, "_preadv_table", None)
    assert content(store) == expected
    monkeypatch.setattr(local, "_preadv", local._read_copying)
    monkeypatch.setattr(local, "_fadvise", None)
    assert content(store) == expected


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="the system has no preadv")
def test_reads_that_come_in_pieces_make_the_same_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = content(store)

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        first = next(buffer for buffer in buffers if buffer.nbytes)
        return os.preadv(descriptor, [first[: min(100, first.nbytes)]], offset)

    table = local._preadv_table
    monkeypatch.setattr(local, "_preadv", short)
    monkeypatch.setattr(local, "_preadv_table", table and (lambda fd, address, rows, at: table(fd, address, 1, at)))
    assert content(store) == expected
    monkeypatch.setattr(local, "_preadv", os.preadv)
    monkeypatch.setattr(local, "_preadv_table", table)
    monkeypatch.setattr(local, "_MOST_BUFFERS", 2)
    assert content(store) == expected


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice")
def test_advice_is_given_for_what_is_not_cached_and_changes_no_batch(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = content(store)
    advised: list[int] = []
    monkeypatch.setattr(local, "_fadvise", lambda descriptor, offset, count, advice: advised.append(count))
    monkeypatch.setattr(local, "_in_cache", lambda descriptor, offset: True)
    assert content(store) == expected
    assert not advised
    monkeypatch.setattr(local, "_in_cache", lambda descriptor, offset: False)
    assert content(store) == expected
    assert advised


def test_what_was_just_read_is_in_the_cache_and_what_the_file_lacks_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000))
    with path.open("rb") as file:
        assert len(file.read()) == 10_000
        if hasattr(os, "RWF_NOWAIT"):
            with suppress(OSError):  # a file system that cannot tell
                os.preadv(file.fileno(), [bytearray(1)], 5_000, os.RWF_NOWAIT)
                assert local._in_cache(file.fileno(), 5_000)
        assert not local._in_cache(file.fileno(), 10_000)
        monkeypatch.setattr(local, "_NOWAIT", None)
        assert not local._in_cache(file.fileno(), 5_000)


@given(shift=st.integers(0, 64), counts=st.lists(st.integers(1, 9_000), max_size=6))
def test_parts_of_a_buffer_begin_at_aligned_addresses_and_share_nothing(shift: int, counts: list[int]) -> None:
    memory = np.zeros(shift + ALIGNMENT + sum(map(aligned, counts)), np.uint8)
    region = Region(memory[shift:])
    parts = [region.take(count) for count in counts]
    assert [len(part) for part in parts] == counts
    assert all(part.ctypes.data % ALIGNMENT == 0 for part in parts)
    for part in parts:
        part += 1
    assert int(memory.sum()) == sum(counts)
    assert int(memory.max(initial=0)) <= 1


def test_descriptors_are_kept_while_asked_for_and_no_more_than_the_limit() -> None:
    opened: list[str] = []

    def open_file(path: str) -> int:
        opened.append(path)
        return os.open(os.devnull, os.O_RDONLY)

    descriptors = Descriptors(most=2)

    def use(path: str) -> int:
        with descriptors.use(path, open_file) as found:
            os.fstat(found)
            return found

    use("a")
    use("a")
    assert opened == ["a", "a"]
    with descriptors.keeping():
        with descriptors.use("a", open_file) as held:
            for path in ("b", "c", "d", "d"):
                use(path)
            os.fstat(held)
        assert opened[2:] == ["a", "b", "c", "d"]
        last = use("d")
        assert opened[-1] == "d"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(last)
