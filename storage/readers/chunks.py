"""Chunks out of shard files: the index of each shard is read once, then every chunk is one range."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from numpy.typing import NDArray

from .. import shards
from ..codecs import Encoding, unpack
from ..errors import StoreCorrupt
from .contract import Files, ScatteringFiles
from .pieces import Memory, Read

Checksums = Callable[[str], Sequence[int] | None]


class ChunkReader:
    """Reads chunks of the shards of one store; keeps their indexes, 8 bytes a chunk, 16 where it is compressed."""

    def __init__(self, files: Files, stored: Encoding, checksums: Checksums = lambda path: None) -> None:
        """checksums: of the chunks of a shard by its path, as receipts hold them; None where there are none yet. It is asked
        before anything of a shard is read, and raises StoreCorrupt where the shard is not to be trusted.
        """
        self._files = files
        self._stored = stored
        self._scattering = files if isinstance(files, ScatteringFiles) and not stored.compressed else None
        self._checksums = checksums
        self._indexes: dict[str, NDArray[np.int64]] = {}

    def read(self, path: str, slot: int, slots: int, out: NDArray[np.uint8], *, verify: bool) -> NDArray[np.uint8]:
        """Chunk `slot` of a shard file of `slots` chunks, read into `out` [chunk bytes + 4]; its bytes without crc.

        A compressed chunk is decoded into `out`, never to more than it holds, and needs a buffer of its own size beside it
        for the time of the call. Raises StoreCorrupt where the shard's index or (with `verify`) the chunk is not what was
        written, or where a compressed one does not decode to exactly the chunk's bytes.
        """
        chunk_bytes = out.nbytes - shards.CRC_BYTES
        index = self._index(path, slots, chunk_bytes)
        if self._stored.compressed:
            offset, size = index[slot].tolist()
            held = np.empty(max(size, 0) + shards.CRC_BYTES, dtype=np.uint8)
        else:
            offset, held = int(index[slot]), out
        if offset < 0:
            raise StoreCorrupt(f"{self._files.place(path)}: chunk {slot} is not in the shard")
        self._files.read_range(path, offset, held.data)
        if verify:
            self._check(path, slot, shards.checksum([held[: -shards.CRC_BYTES].data]), shards.stored_checksum(held))
        chunk = out[:chunk_bytes]
        if self._stored.compressed and (problem := unpack(held[: -shards.CRC_BYTES], chunk)) is not None:
            raise StoreCorrupt(f"{self._files.place(path)}: chunk {slot} cannot be decoded: {problem}")
        return chunk

    def checksums(self, path: str, chunks: int, slots: int, chunk_bytes: int) -> tuple[int, ...]:
        """The stored crc32c of a shard's first `chunks` chunks. Raises StoreCorrupt where its index is damaged."""
        index = self._read_index(path, slots, chunk_bytes)
        found = []
        for slot in range(chunks):
            offset, size = index[slot].tolist() if self._stored.compressed else (int(index[slot]), chunk_bytes)
            if offset < 0:
                raise StoreCorrupt(f"{self._files.place(path)}: chunk {slot} is not in the shard")
            held = np.empty(shards.CRC_BYTES, dtype=np.uint8)
            self._files.read_range(path, offset + size, held.data)
            found.append(shards.stored_checksum(held))
        return tuple(found)

    def damaged(self, path: str, chunks: int, slots: int, chunk_bytes: int) -> list[tuple[int, str]] | None:
        """Slots of a shard's first `chunks` chunks that are not what was written, each with the problem; None where
        the index is damaged or the file is missing, so that no chunk can be told from another.
        """
        try:
            self._indexes[path] = self._read_index(path, slots, chunk_bytes)
        except StoreCorrupt:
            return None
        out = np.empty(chunk_bytes + shards.CRC_BYTES, dtype=np.uint8)
        found = []
        for slot in range(chunks):
            try:
                self.read(path, slot, slots, out, verify=True)
            except StoreCorrupt as error:
                found.append((slot, str(error).removeprefix(f"{self._files.place(path)}: ")))
        return found

    @property
    def scatters(self) -> bool:
        """Whether `scatter` can be used: where chunks lie raw in files that can be read to many places."""
        return self._scattering is not None

    def scatter(
        self, path: str, slot: int, slots: int, chunk_bytes: int, reads: Iterable[Read], out: Memory, scratch: Memory
    ) -> None:
        """Parts of a raw chunk straight to where they belong in `out`, unchecked; see Files.read_pieces."""
        assert self._scattering is not None
        start = self._start(path, slot, slots, chunk_bytes)
        for first, pieces in reads:
            self._scattering.read_pieces(path, start + first, pieces, out, scratch)

    def scatter_checked(
        self, path: str, slot: int, slots: int, chunk_bytes: int, buffers: list[memoryview], end: NDArray[np.uint8]
    ) -> None:
        """A whole raw chunk to where its parts belong, one after another, and its checksum to `end` [4].

        Raises StoreCorrupt as `read` with `verify` does; `buffers` then hold what must not be used.
        """
        assert self._scattering is not None
        start = self._start(path, slot, slots, chunk_bytes)
        self._scattering.read_scattered(path, start, [*buffers, end.data])
        self._check(path, slot, shards.checksum(buffers), shards.stored_checksum(end))

    def _start(self, path: str, slot: int, slots: int, chunk_bytes: int) -> int:
        start = int(self._index(path, slots, chunk_bytes)[slot])
        if start < 0:
            raise StoreCorrupt(f"{self._files.place(path)}: chunk {slot} is not in the shard")
        return start

    def _check(self, path: str, slot: int, found: int, stored: int) -> None:
        if found != stored:
            raise StoreCorrupt(f"{self._files.place(path)}: the checksum of chunk {slot} does not match its bytes")
        committed = self._checksums(path)
        if committed is not None and committed[slot] != stored:
            raise StoreCorrupt(f"{self._files.place(path)}: chunk {slot} is whole, but not the one that was committed")

    def will_need(self, path: str, slot: int, chunk_bytes: int) -> bool:
        """Tell the system that a chunk is read soon; whether that was not needed."""
        if self._scattering is None:
            return True
        index = self._indexes.get(path)
        start = slot * shards.chunk_stride(chunk_bytes) if index is None else int(index[slot])
        return self._scattering.will_need(path, max(start, 0), chunk_bytes + shards.CRC_BYTES)

    def keeping(self) -> AbstractContextManager[None]:
        """Keep shards that were read open meanwhile, where that saves anything."""
        return nullcontext() if self._scattering is None else self._scattering.keeping()

    def _index(self, path: str, slots: int, chunk_bytes: int) -> NDArray[np.int64]:
        index = self._indexes.get(path)
        if index is None:
            self._checksums(path)
            index = self._indexes[path] = self._read_index(path, slots, chunk_bytes)
        return index

    def _read_index(self, path: str, slots: int, chunk_bytes: int) -> NDArray[np.int64]:
        size = self._files.size(path)
        if size is None:
            raise StoreCorrupt(f"{self._files.place(path)}: the file is missing")
        raw = bytearray(min(shards.index_bytes(slots), size))
        self._files.read_range(path, size - len(raw), memoryview(raw))
        if self._stored.compressed:
            index = shards.decode_ranges(bytes(raw), slots, self._stored.stored_bytes(chunk_bytes), size)
        else:
            index = shards.decode_index(bytes(raw), slots, chunk_bytes, size)
        if index is None:
            raise StoreCorrupt(f"{self._files.place(path)}: the index of the shard is damaged")
        return index
