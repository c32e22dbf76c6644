"""What the system lacks, or does by halves, changes no batch."""

import os
from types import ModuleType
from typing import Any

import pytest

from sherl_cache.storage import Store, Stream
from sherl_cache.storage.readers import local
from sherl_cache.storage.readers.descriptors import Descriptors


@pytest.fixture(scope="module")
def store(builders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return builders.Case().build(tmp_path_factory.mktemp("systems") / "store")


def content(store: Store) -> list[Any]:
    """Two epochs, the first through bounce buffers, the second scattered; as rank 1 of 2, so that there are gaps."""
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
    monkeypatch.setattr(local, "_preadv", local._read_copying)
    monkeypatch.setattr(local, "_fadvise", None)
    assert content(store) == expected


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="the system has no preadv")
def test_reads_that_come_in_pieces_make_the_same_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = content(store)

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        first = next(buffer for buffer in buffers if buffer.nbytes)
        return os.preadv(descriptor, [first[: min(100, first.nbytes)]], offset)

    monkeypatch.setattr(local, "_preadv", short)
    assert content(store) == expected
    monkeypatch.setattr(local, "_preadv", os.preadv)
    monkeypatch.setattr(local, "_MOST_BUFFERS", 2)
    assert content(store) == expected


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
