"""The bytes of a shard, as the zarr v3 sharding codec lays them out.

    chunk 0 | crc32c | zeros | chunk 1 | crc32c | zeros | ... | index: (offset, bytes) of each chunk as uint64 | crc32c

Everything is little-endian. A chunk's bytes in the index include its checksum. Every chunk, and the index, begins at a
multiple of 64 bytes: the system copies rows into memory faster from there than from a few bytes beside it. Chunks of a
compressed array differ in size, and the checksum is of the compressed bytes. Chunks past the end of the array have the
entry (2^64 - 1, 2^64 - 1) and no bytes.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import google_crc32c
import numpy as np
from numpy.typing import NDArray

CRC_BYTES: Final = 4
ALIGNMENT: Final = 64
"""Chunks begin at multiples of so many bytes: a cache line."""
_ENTRY_BYTES: Final = 16
_ABSENT: Final = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


def encode(chunks: Sequence[NDArray[Any]], slots: int) -> list[memoryview | bytes]:
    """Buffers that follow each other in the file: `chunks` (contiguous, in order) in a shard of `slots`
    chunks.

    The chunks themselves are not copied.
    """
    index = np.full((slots, 2), _ABSENT, dtype="<u8")
    buffers: list[memoryview | bytes] = []
    offset = 0
    for slot, chunk in enumerate(chunks):
        flat = chunk.reshape(-1).view(np.uint8)
        room = chunk_stride(flat.nbytes)
        buffers += [flat.data, _checksum(flat) + bytes(room - flat.nbytes - CRC_BYTES)]
        index[slot] = offset, flat.nbytes + CRC_BYTES
        offset += room
    raw = index.tobytes()
    return [*buffers, raw, _checksum(np.frombuffer(raw, np.uint8))]


def chunk_stride(chunk_bytes: int) -> int:
    """Bytes from the beginning of a chunk of `chunk_bytes` to that of the next one."""
    return -(-(chunk_bytes + CRC_BYTES) // ALIGNMENT) * ALIGNMENT


def index_bytes(slots: int) -> int:
    """Bytes of the index at the end of a shard of `slots` chunks."""
    return slots * _ENTRY_BYTES + CRC_BYTES


def shard_bytes(chunks: int, chunk_bytes: int, slots: int) -> int:
    """Bytes of a shard that holds `chunks` chunks of `chunk_bytes` each, at most where they are compressed."""
    return chunks * chunk_stride(chunk_bytes) + index_bytes(slots)


def decode_index(raw: bytes, slots: int, chunk_bytes: int, size: int) -> NDArray[np.int64] | None:
    """Offset of each chunk in a shard file of `size` bytes, -1 for an absent one; None where the index is
    damaged.
    """
    if len(raw) != index_bytes(slots) or not holds(np.frombuffer(raw, np.uint8)):
        return None
    index = np.frombuffer(raw[:-CRC_BYTES], dtype="<u8").reshape(slots, 2)
    absent = (index == _ABSENT).all(axis=1)
    inside = (index[:, 1] == chunk_bytes + CRC_BYTES) & (index[:, 0] <= max(size - chunk_bytes - CRC_BYTES, 0))
    if not (absent | inside).all():
        return None
    offsets: NDArray[np.int64] = np.where(absent, 0, index[:, 0]).astype(np.int64)
    offsets[absent] = -1
    return offsets


def decode_ranges(raw: bytes, slots: int, most_bytes: int, size: int) -> NDArray[np.int64] | None:
    """Offset and bytes, without checksum, of each chunk in a shard file of `size` bytes whose chunks differ in size:
    [slots, 2], (-1, -1) for an absent one; None where the index is damaged.

    A chunk has at most `most_bytes`, lies before the index, and shares no byte with another.
    """
    if len(raw) != index_bytes(slots) or not holds(np.frombuffer(raw, np.uint8)):
        return None
    index = np.frombuffer(raw[:-CRC_BYTES], dtype="<u8").reshape(slots, 2)
    absent = (index == _ABSENT).all(axis=1)
    end = size - len(raw)
    offsets, sizes = index[:, 0], index[:, 1]
    inside = (sizes > CRC_BYTES) & (sizes <= min(most_bytes + CRC_BYTES, end)) & (offsets <= end)
    inside[inside] = offsets[inside] + sizes[inside] <= end
    if not (absent | inside).all():
        return None
    ranges: NDArray[np.int64] = np.where(absent[:, None], 0, index).astype(np.int64)
    held = ranges[~absent]
    held = held[np.argsort(held[:, 0], kind="stable")]
    if (held[:-1].sum(axis=1) > held[1:, 0]).any():
        return None
    ranges[:, 1] -= CRC_BYTES
    ranges[absent] = -1
    return ranges


def holds(data: NDArray[np.uint8]) -> bool:
    """Whether bytes [n] end in the crc32c of what is before."""
    return _checksum(data[:-CRC_BYTES]) == data[-CRC_BYTES:].tobytes()


def stored_checksum(data: NDArray[np.uint8]) -> int:
    """The crc32c at the end of bytes [n], as it was stored."""
    return int.from_bytes(data[-CRC_BYTES:].tobytes(), "little")


def checksum(pieces: Iterable[memoryview]) -> int:
    """The crc32c of bytes that lie in several pieces."""
    found = 0
    for piece in pieces:
        found = google_crc32c.extend(found, np.frombuffer(piece, np.uint8))
    return found


def _checksum(data: NDArray[np.uint8]) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")
