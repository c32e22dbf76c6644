"""Compressed chunks: what is damaged or lies about its size is refused, and no frame grows beyond its chunk."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from sherl_cache.storage import Store, Stream, encoding, shards
from sherl_cache.storage.codecs import pack, unpack
from sherl_cache.storage.codecs.zstd import compress_bound, frame_problem
from sherl_cache.storage.errors import BudgetTooSmall, StoreCorrupt

NAME = "float16+bitround:4+zstd:3"


def numbers(count: int, kind: str) -> NDArray[np.uint8]:
    rng = np.random.default_rng(count)
    return {"zeros": np.zeros(count, np.uint8), "few": rng.integers(0, 3, count, np.uint8)}.get(
        kind, rng.integers(0, 256, count, np.uint8)
    )


@pytest.mark.parametrize(
    ("count", "level"),
    [*((count, 1) for count in (1, 255, 256, 257, 65_536, 65_792, 200_000, 3_000_000)), (257, 19), (200_000, 19)],
)
@pytest.mark.parametrize("kind", ["zeros", "few", "noise"])
def test_what_is_packed_comes_back_and_keeps_the_bound(count: int, kind: str, level: int) -> None:
    chunk = numbers(count, kind)
    packed = pack(chunk, encoding(f"int8+zstd:{level}"))
    assert packed.nbytes <= compress_bound(count)
    out = np.empty(count, np.uint8)
    assert unpack(packed, out) is None
    np.testing.assert_array_equal(out, chunk)
    for wrong in (count - 1, count + 1):
        assert "declares" in str(unpack(packed, np.empty(wrong, np.uint8)))


def frame(content: int, *blocks: bytes, descriptor: int = 0xA0) -> NDArray[np.uint8]:
    """A frame by hand: one segment, `content` declared in four bytes."""
    return np.frombuffer(
        b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + content.to_bytes(4, "little") + b"".join(blocks), "u1"
    )


def block(kind: int, size: int, body: bytes, last: bool = True) -> bytes:
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + body


RAW, RLE = 0, 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.frombuffer(b"", "u1"), "no zstd frame"),
        (np.frombuffer(b"\x28\xb5\x2f\xfe" + bytes(20), "u1"), "no zstd frame"),
        (frame(8, block(RAW, 8, bytes(8))), None),
        (frame(8, block(RLE, 8, b"x")), None),
        (frame(8, block(RAW, 4, bytes(4), last=False), block(RAW, 4, bytes(4))), None),
        (frame(2**31, block(RLE, 8, b"x")), "declares 2,147,483,648"),
        (frame(8, block(RLE, 100_000, b"x")), "damaged"),  # says 8 bytes, makes 100,000
        (frame(8, block(RLE, 4, b"x")), "damaged"),
        (frame(8, block(RAW, 8, bytes(7))), "cut"),
        (frame(8, block(RAW, 8, bytes(8))[:2]), "cut"),
        (frame(8, block(RAW, 4, bytes(4), last=False)), "cut"),
        (frame(8, block(RAW, 8, bytes(8)), b"more"), "something follows"),
        (np.tile(frame(8, block(RAW, 8, bytes(8))), 2), "something follows"),
        (frame(8, block(3, 8, bytes(8))), "no known kind"),
        (frame(8, b"\x07", block(RAW, 8, bytes(8)), descriptor=0xA1), "dictionary"),
        (frame(8, block(RAW, 8, bytes(8)), descriptor=0xA8), "newer decoder"),
        (np.frombuffer(b"\x28\xb5\x2f\xfd\x00\x58" + block(RAW, 8, bytes(8)), "u1"), "declares no size"),
        (np.frombuffer(bytes(Zstd(3).encode(bytes(64 << 20))), "u1"), "declares 67,108,864"),
    ],
)
def test_a_frame_is_right_or_told_what_is_wrong(given: NDArray[np.uint8], told: str | None) -> None:
    problem = unpack(given, np.empty(8, np.uint8))
    assert problem is None if told is None else told in str(problem)


def test_every_changed_byte_of_a_frame_is_decoded_within_its_chunk_or_refused() -> None:
    """Whatever the bytes: our answer, never a crash; what still decodes fills the chunk and nothing behind it."""
    packed = pack(numbers(3000, "few"), encoding("int8+zstd:3"))
    guarded = np.full(3000 + 64, 77, np.uint8)
    for place in range(packed.nbytes):
        for change in (1, 0x10, 0x80, 0xFF):
            changed = packed.copy()
            changed[place] ^= change
            unpack(changed, guarded[:3000])
            assert (guarded[3000:] == 77).all()


def test_a_checksum_inside_the_frame_is_allowed_and_looked_at() -> None:
    data = np.frombuffer(bytes(Zstd(3, checksum=True).encode(bytes(100))), "u1").copy()
    assert frame_problem(data.data, 100) is None
    data[-1] ^= 1
    assert "damaged" in str(unpack(data, np.empty(100, np.uint8)))


@pytest.mark.parametrize("changed", range(3 * 16 + 4))
def test_every_flipped_byte_of_an_index_of_unlike_chunks_is_seen(changed: int) -> None:
    chunks = [pack(numbers(count, "few"), encoding("int8+zstd")) for count in (400, 500)]
    data = b"".join(shards.encode(chunks, 3))
    raw = bytearray(data[-shards.index_bytes(3) :])
    ranges = shards.decode_ranges(bytes(raw), 3, 600, len(data))
    assert ranges is not None
    assert ranges.tolist() == [
        [0, chunks[0].nbytes],
        [shards.chunk_stride(chunks[0].nbytes), chunks[1].nbytes],
        [-1, -1],
    ]
    raw[changed] ^= 4
    assert shards.decode_ranges(bytes(raw), 3, 600, len(data)) is None


HUGE = 2**64 - 1


@pytest.mark.parametrize(
    "entries",
    [
        [(0, 104), (50, 104)],  # share bytes
        [(0, 104), (0, 104)],
        [(0, 505), (600, 50)],  # more than compression can make of a chunk
        [(0, 4), (100, 50)],  # nothing but a checksum
        [(0, 0), (100, 50)],
        [(950, 104), (0, 50)],  # reaches into the index
        [(2**63, 104), (0, 50)],
        [(HUGE - 50, 104), (0, 50)],  # the sum wraps round
        [(0, HUGE), (0, 50)],
        [(HUGE, 104), (0, 50)],
    ],
)
def test_an_index_that_cannot_be_is_refused_though_its_checksum_is_right(entries: list[tuple[int, int]]) -> None:
    raw = np.asarray(entries, "<u8").tobytes()
    raw += shards._checksum(np.frombuffer(raw, np.uint8))
    assert shards.decode_ranges(raw, 2, 500, 1000 + len(raw)) is None


def test_damage_of_a_compressed_chunk_is_located_by_reads_and_by_verify(builders: ModuleType, tmp_path: Path) -> None:
    store = builders.Case(encoding=NAME).build(tmp_path)
    path = tmp_path / "train" / "encoder" / "h02" / "c" / "1" / "0"
    data = bytearray(path.read_bytes())
    groups = store.split("train").groups_per_unit
    ranges = shards.decode_ranges(bytes(data[-shards.index_bytes(groups) :]), groups, 1 << 20, len(data))
    assert ranges is not None
    assert len({size for _, size in ranges.tolist()}) > 1
    data[int(ranges[1, 0]) + 9] ^= 1
    path.write_bytes(data)
    again = Store.open(tmp_path)
    with pytest.raises(StoreCorrupt, match=r"h02.*checksum of chunk 1.*row group.*examples"):
        again.chunk("train", "encoder", 2, groups + 1)
    again.chunk("train", "encoder", 2, groups)
    (finding,) = store.verify(deep=True)
    assert (finding.tap, finding.chunk) == ("train/encoder/h02", groups + 1)
    assert finding.examples


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_from_compressed_chunks_equal_those_from_plain_ones(
    builders: ModuleType, tmp_path: Path, threads: int
) -> None:
    taps = {"encoder": (0, 3), "decoder": (1,)}
    batches = []
    for name in ("float16+bitround:4", NAME):
        store = builders.Case(encoding=name).build(tmp_path / name.replace(":", ""))
        stream = Stream(store, "train", taps, batch_examples=7, window=2, budget_bytes=1 << 20, threads=threads)
        batches.append([batch.copy() for batch in stream.epoch(1)])
    for plain, packed in zip(*batches, strict=True):
        np.testing.assert_array_equal(plain.examples, packed.examples)
        for stream_name in taps:
            np.testing.assert_array_equal(plain.streams[stream_name].taps, packed.streams[stream_name].taps)


def test_the_budget_counts_the_compressed_chunk_beside_the_decoded_one(builders: ModuleType, tmp_path: Path) -> None:
    needed = []
    for name in ("float16", "float16+zstd:1"):
        store = builders.Case(encoding=name).build(tmp_path / name.replace(":", ""))
        with pytest.raises(BudgetTooSmall, match=r"window of 2 row groups needs [\d,]+ bytes") as caught:
            Stream(store, "train", {"encoder": (0,)}, batch_examples=7, window=2, budget_bytes=1, threads=2)
        needed.append(int(str(caught.value).partition("row groups needs ")[2].partition(" ")[0].replace(",", "")))
    chunk = store.chunk_bytes(store.split("train").streams["encoder"])
    assert needed[1] - needed[0] == 2 * (compress_bound(chunk) + 4)


BOMB = """
import sys
from pathlib import Path
import numpy as np
from sherl_cache.storage import Store, shards
from sherl_cache.storage.errors import StoreCorrupt

def peak():
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")).split()[1])

root, bomb = Path(sys.argv[1]), np.fromfile(sys.argv[2], np.uint8)
store = Store.open(root)
unit = store.plan.units()[0]
slots = store.split("train").groups_per_unit
path = root / "train" / "encoder" / "h00" / "c" / "0" / "0"
store.chunk("train", "encoder", 0, 0)
whole = path.stat().st_size
for body in (bomb, np.concatenate([bomb[:5], np.array([0, 4, 0, 0], np.uint8), bomb[9:]])):
    path.write_bytes(b"".join(shards.encode([body] * unit.groups, slots)))
    from sherl_cache.storage.readers.chunks import ChunkReader
    before = peak()
    reader = ChunkReader(store._files, store.encoding)
    out = np.empty(int(sys.argv[3]) + 4, np.uint8)
    try:
        reader.read("train/encoder/h00/c/0/0", 0, slots, out, verify=True)
    except StoreCorrupt as error:
        print(error)
    else:
        sys.exit("the bomb was decoded")
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_small_chunk_that_would_grow_to_gigabytes_takes_no_memory(builders: ModuleType, tmp_path: Path) -> None:
    """2 GiB of zeros, first honest about it, then declaring the bytes of the chunk; crc32c right both times."""
    case = builders.Case(encoding="int8+zstd:1", chunk_bytes=(1 << 20, 1 << 20))
    case.build(tmp_path / "store")
    blocks = [block(RLE, 128 << 10, b"\0", last=False)] * ((2 << 30) // (128 << 10) - 1)
    bomb = frame(2 << 30, *blocks, block(RLE, 128 << 10, b"\0"))
    assert bomb.nbytes < 70_000
    bomb.tofile(tmp_path / "bomb")
    command = [sys.executable, "-W", "error", "-c", BOMB, tmp_path / "store", tmp_path / "bomb", "1048576"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "declares 2,147,483,648 bytes" in said[0]
    assert "cannot be decoded" in said[2]
    assert max(int(said[1]), int(said[3])) < 16 << 10  # KiB
