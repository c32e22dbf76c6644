"""Chunks out of shard files: the index of each shard is read once, then every chunk is one range."""

import numpy as np
from numpy.typing import NDArray

from .. import shards
from ..errors import StoreCorrupt
from .contract import Files


class ChunkReader:
    """Reads chunks of the shards of one store; keeps their indexes, 8 bytes a chunk."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._indexes: dict[str, NDArray[np.int64]] = {}

    def read(
        self, path: str, slot: int, slots: int, out: NDArray[np.uint8], *, verify: bool, fetched: bool = False
    ) -> NDArray[np.uint8]:
        """Chunk `slot` of a shard file of `slots` chunks, read into `out` [chunk bytes + 4]; its bytes without crc.

        fetched: `fetch` has put it into `out`. Raises StoreCorrupt where the shard's index or (with `verify`) the chunk
        is not what was written.
        """
        index = self._index(path, slots, out.nbytes - shards.CRC_BYTES)
        if index[slot] < 0:
            raise StoreCorrupt(f"{self._files.place(path)}: chunk {slot} is not in the shard")
        if not fetched:
            self._files.read_range(path, int(index[slot]), out.data)
        if verify and not shards.holds(out):
            raise StoreCorrupt(f"{self._files.place(path)}: the checksum of chunk {slot} does not match its bytes")
        return out[: -shards.CRC_BYTES]

    def fetch(self, path: str, slot: int, slots: int, out: NDArray[np.uint8]) -> bool:
        """Chunks from `slot` on, one a row of `out` [chunks, chunk bytes + 4], by one request and unchecked; False, and
        nothing done, where they do not follow each other in the file.
        """
        index = self._index(path, slots, out.shape[1] - shards.CRC_BYTES)[slot : slot + len(out)]
        if len(index) != len(out) or index[0] < 0 or (np.diff(index) != out.shape[1]).any():
            return False
        self._files.read_range(path, int(index[0]), out.reshape(-1).data)
        return True

    def _index(self, path: str, slots: int, chunk_bytes: int) -> NDArray[np.int64]:
        index = self._indexes.get(path)
        if index is None:
            index = self._indexes[path] = self._read_index(path, slots, chunk_bytes)
        return index

    def _read_index(self, path: str, slots: int, chunk_bytes: int) -> NDArray[np.int64]:
        size = self._files.size(path)
        if size is None:
            raise StoreCorrupt(f"{self._files.place(path)}: the file is missing")
        raw = bytearray(min(shards.index_bytes(slots), size))
        self._files.read_range(path, size - len(raw), memoryview(raw))
        index = shards.decode_index(bytes(raw), slots, chunk_bytes, size)
        if index is None:
            raise StoreCorrupt(f"{self._files.place(path)}: the index of the shard is damaged")
        return index
