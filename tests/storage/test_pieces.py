"""Reads that name their places by addresses: what they write is what the file holds, and nothing beside it."""

from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sherl_cache.storage.errors import StoreCorrupt
from sherl_cache.storage.placement import Moves
from sherl_cache.storage.readers import local
from sherl_cache.storage.readers.local import LocalFiles
from sherl_cache.storage.readers.pieces import Memory, Pieces
from sherl_cache.storage.transfers import GAP_BYTES, transfers

FILE_BYTES = 12 * GAP_BYTES
GUARD = 64
NAME = "file"
WAYS = ("as the system does", "without the call", "failing", "stuttering", "few at a time")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> LocalFiles:
    root = tmp_path_factory.mktemp("pieces")
    (root / NAME).write_bytes(data().tobytes())
    return LocalFiles(root)


@cache
def data() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, FILE_BYTES, np.uint8)


def guarded(room: int) -> tuple[np.ndarray, Memory]:
    """Zeros, and `room` bytes in the middle of them as memory."""
    whole = np.zeros(room + 2 * GUARD, np.uint8)
    return whole, Memory(whole[GUARD : GUARD + room])


def use(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = local._preadv_table

    def stuttering(descriptor: int, address: int, rows: int, offset: int) -> int:
        assert real is not None
        return real(descriptor, address, min(rows, 1), offset)

    if way == "without the call":
        monkeypatch.setattr(local, "_preadv_table", None)
    elif way == "failing":
        monkeypatch.setattr(local, "_preadv_table", lambda *_: -1)
    elif way == "stuttering" and real is not None:
        monkeypatch.setattr(local, "_preadv_table", stuttering)
    elif way == "few at a time":
        monkeypatch.setattr(local, "_MOST_BUFFERS", 2)


@pytest.mark.parametrize("way", WAYS)
def test_pieces_hold_the_bytes_of_the_file_and_nothing_beside_them_is_written(
    files: LocalFiles, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(way, monkeypatch)
    draw = np.random.default_rng(1)
    for _ in range(40):
        sizes = draw.integers(0, 200, draw.integers(1, 12))
        nowhere = draw.random(len(sizes)) < 0.3
        order = draw.permutation(len(sizes))
        starts = np.empty(len(sizes), np.int64)
        starts[order] = np.cumsum(sizes[order]) - sizes[order]
        starts[nowhere] = -1
        room, offset = int(sizes.sum()), int(draw.integers(0, 1000))
        expected = np.zeros(room + 2 * GUARD, np.uint8)
        at = offset
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            if start >= 0:
                expected[GUARD + start : GUARD + start + size] = data()[at : at + size]
            at += size
        whole, memory = guarded(room)
        files.read_pieces(NAME, offset, Pieces(starts, sizes, room), memory, Memory(np.zeros(200, np.uint8)))
        np.testing.assert_array_equal(whole, expected)


@settings(deadline=None)
@given(
    room=st.integers(0, 40),
    pieces=st.lists(
        st.tuples(
            st.one_of(st.integers(-3, 45), st.sampled_from([-(2**63), 2**63 - 1])),
            st.one_of(st.integers(-3, 45), st.sampled_from([-(2**63), 2**63 - 1])),
        ),
        max_size=4,
    ),
)
@example(room=10, pieces=[(-2, 3)])
@example(room=10, pieces=[(0, 4), (9, 2)])
@example(room=10, pieces=[(2**63 - 1, 5)])
@example(room=10, pieces=[(5, 2**63 - 1)])
@example(room=10, pieces=[(5, -1)])
def test_no_plan_writes_outside_of_the_memory(files: LocalFiles, room: int, pieces: list[tuple[int, int]]) -> None:
    """The oracle is Python's own integers, which do not overflow."""
    starts, sizes = (np.array([pair[at] for pair in pieces], np.int64) for at in (0, 1))
    right = all(size >= 0 and (start == -1 or 0 <= start <= start + size <= room) for start, size in pieces)
    huge = any(size > FILE_BYTES for start, size in pieces if start == -1)
    whole, memory = guarded(room)
    if not right:
        with pytest.raises(IndexError, match="the plan was made wrong"):
            Pieces(starts, sizes, room)
        return
    planned = Pieces(starts, sizes, room)
    if huge:
        with pytest.raises(IndexError, match="are needed"):
            files.read_pieces(NAME, 0, planned, memory, Memory(np.zeros(64, np.uint8)))
        return
    files.read_pieces(NAME, 0, planned, memory, Memory(np.zeros(64, np.uint8)))
    assert not whole[:GUARD].any()
    assert not whole[GUARD + room :].any()


def test_memory_that_is_too_small_or_not_one_piece_is_refused(files: LocalFiles) -> None:
    pieces = Pieces(np.array([0, -1]), np.array([10, 5]), 10)
    for room, scratch in ((9, 5), (10, 4)):
        whole, memory = guarded(room)
        with pytest.raises(IndexError, match="10 and 5 are needed"):
            files.read_pieces(NAME, 0, pieces, memory, Memory(np.zeros(scratch, np.uint8)))
        assert not whole.any()
    fixed = np.zeros(10, np.uint8)
    fixed.flags.writeable = False
    for array in (np.zeros(20, np.uint8)[::2], fixed):
        with pytest.raises(ValueError, match="contiguous and writable"):
            Memory(array)


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_ends_too_early_is_corrupt(files: LocalFiles, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(way, monkeypatch)
    pieces = Pieces(np.array([0, 10, 20]), np.array([10, 10, 10]), 30)
    with pytest.raises(StoreCorrupt, match=f"the file ends at byte {FILE_BYTES:,}"):
        files.read_pieces(NAME, FILE_BYTES - 25, pieces, guarded(30)[1], Memory(np.zeros(0, np.uint8)))
    with pytest.raises(StoreCorrupt, match="the file is missing"):
        files.read_pieces("nothing", 0, pieces, guarded(30)[1], Memory(np.zeros(0, np.uint8)))


@pytest.mark.skipif(local._preadv_table is None, reason="libc has no preadv of 64 bits")
def test_one_call_reads_a_chunk(files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = local._preadv_table
    assert real is not None

    def counted(descriptor: int, address: int, rows: int, offset: int) -> int:
        calls.append(rows)
        return real(descriptor, address, rows, offset)

    monkeypatch.setattr(local, "_preadv_table", counted)
    monkeypatch.setattr(local, "_preadv", None)
    _, memory = guarded(1000)
    files.read_pieces(
        NAME, 0, Pieces(np.arange(100) * 10, np.full(100, 10), 1000), memory, Memory(np.zeros(0, np.uint8))
    )
    np.testing.assert_array_equal(memory.data, data()[:1000])
    assert calls == [100]


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), gaps=st.sampled_from([0, 3, 2 * GAP_BYTES // 16]))
def test_transfers_as_reads_equal_transfers_as_copies(files: LocalFiles, seed: int, gaps: int) -> None:
    """Groups of one chunk each, all of the same file, some with nothing wanted of them; rows of 16 bytes."""
    draw, row_bytes = np.random.default_rng(seed), 16
    counts = [int(draw.integers(0, 6)) for _ in range(4)]
    source, count = [], []
    for pieces in counts:
        sizes = draw.integers(1, 5, pieces)
        between = draw.integers(0, gaps + 1, pieces) * draw.integers(0, 2, pieces)
        source.append(np.cumsum(sizes + between) - sizes)
        count.append(sizes)
    all_counts = np.concatenate(count).astype(np.int64)
    order = draw.permutation(len(all_counts))
    target = np.empty(len(all_counts), np.int64)
    target[order] = np.cumsum(all_counts[order]) - all_counts[order]
    starts = np.cumsum([0, *counts])
    room = int(all_counts.sum()) * row_bytes
    moves = Moves(np.concatenate(source).astype(np.int64), target, all_counts, starts)

    planned = transfers(moves, row_bytes, room)
    assert [transfer is not None for transfer in planned] == [pieces > 0 for pieces in counts]
    expected = np.zeros(room, np.uint8)
    whole, memory = guarded(room)
    scratch = Memory(np.zeros(GAP_BYTES, np.uint8))
    for transfer in planned:
        if transfer is None:
            continue
        for begin, place, size in transfer.copies:
            expected[place : place + size] = data()[begin : begin + size]
        asked = 0
        for first, pieces in transfer.reads:
            files.read_pieces(NAME, first, pieces, memory, scratch)
            asked += pieces.total
        assert asked == transfer.bytes
    assert expected.all()
    np.testing.assert_array_equal(memory.data, expected)
    assert not whole[:GUARD].any()
    assert not whole[GUARD + room :].any()


def test_far_parts_of_a_chunk_are_read_apart_and_near_ones_together() -> None:
    rows = GAP_BYTES // 16
    moves = Moves(np.array([0, 1 + rows, 3 + 2 * rows]), np.array([0, 1, 2]), np.array([1, 1, 1]), np.array([0, 3]))
    (transfer,) = transfers(moves, 16, 48)
    assert transfer is not None
    assert [(first, pieces.total) for first, pieces in transfer.reads] == [
        (0, 2 * 16 + GAP_BYTES),
        ((3 + 2 * rows) * 16, 16),
    ]
    with pytest.raises(IndexError, match="16 bytes to byte 32 of a memory of 47"):
        transfers(moves, 16, 47)
