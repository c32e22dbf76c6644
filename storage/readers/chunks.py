"""Chunks out of shard files: the index of each shard is read once, then every chunk is one range."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from numpy.typing import NDArray

from .. import shards
from ..errors import StoreCorrupt
from .contract import Files, ScatteringFiles


class ChunkReader:
    """Reads chunks of the shards of one store; keeps their indexes, 8 bytes a chunk."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._scattering = files if isinstance(files, ScatteringFiles) else None
        self._indexes: dict[str, NDArray[np.int64]] = {}

    def read(self, path: str, slot: int, slots: int, out: NDArray[np.uint8], *, verify: bool) -> NDArray[np.uint8]:
        """Chunk `slot` of a shard file of `slots` chunks, read into `out` [chunk bytes + 4]; its bytes without crc.

        Raises StoreCorrupt where the shard's index or (with `verify`) the chunk is not what was written.
        """
        self._files.read_range(path, self._offset(path, slot, slots, out.nbytes - shards.CRC_BYTES), out.data)
        if verify and not shards.holds(out):
            raise StoreCorrupt(f"{self._files.place(path)}: the checksum of chunk {slot} does not match its bytes")
        return out[: -shards.CRC_BYTES]

    @property
    def scatters(self) -> bool:
        """Whether `scatter` can be used: where chunks lie raw in files that can be read to many places."""
        return self._scattering is not None

    def scatter(
        self, path: str, slot: int, slots: int, chunk_bytes: int, runs: Iterable[tuple[int, list[memoryview]]]
    ) -> None:
        """Parts of a raw chunk straight to where they belong, unchecked: (first byte of the chunk, buffers that are
        filled from there on) for each run.
        """
        assert self._scattering is not None
        start = self._offset(path, slot, slots, chunk_bytes)
        for first, buffers in runs:
            self._scattering.read_scattered(path, start + first, buffers)

    def will_need(self, path: str, slot: int, chunk_bytes: int) -> None:
        """Tell the system that a chunk is read soon."""
        if self._scattering is not None:
            index = self._indexes.get(path)
            start = slot * (chunk_bytes + shards.CRC_BYTES) if index is None else int(index[slot])
            self._scattering.will_need(path, max(start, 0), chunk_bytes + shards.CRC_BYTES)

    def keeping(self) -> AbstractContextManager[None]:
        """Keep shards that were read open meanwhile, where that saves anything."""
        return nullcontext() if self._scattering is None else self._scattering.keeping()

    def _offset(self, path: str, slot: int, slots: int, chunk_bytes: int) -> int:
        index = self._indexes.get(path)
        if index is None:
            index = self._read_index(path, slots, chunk_bytes)
            self._indexes[path] = index
        if index[slot] < 0:
            raise StoreCorrupt(f"{self._files.place(path)}: chunk {slot} is not in the shard")
        return int(index[slot])

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
