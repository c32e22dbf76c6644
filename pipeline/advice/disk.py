"""How fast a disk writes and reads, found with one temporary folder beside the place that is asked about."""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from ...storage.readers.local import LocalFiles
from ...storage.system import translated
from ..space import free_bytes

PREFIX: Final = ".sherl-cache-advise-"
_SHARD_BYTES: Final = 16 << 20
_CHUNK_BYTES: Final = 4 << 20
_MOST_BYTES: Final = 512 << 20
_SHARE_OF_FREE: Final = 0.1
_SMALL_FILES: Final = 8


@dataclass(frozen=True)
class DiskRates:
    """Bytes a second, written durably and read when the page cache has none of it; small files a second."""

    write: float
    read: float
    files: float


def measure_disk(root: Path, seconds: float, threads: int) -> DiskRates:
    """The disk where `root` lies or will lie, within about `seconds`, read by so many threads.

    What is written goes to a temporary folder beside `root`, which is removed also when an error or Ctrl-C ends this. Raises
    OutOfSpace, AccessDenied.
    """
    folder = root.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder, ignore_cleanup_errors=True) as temporary:
            return _measure(Path(temporary), seconds, max(threads, 1))
    except OSError as error:
        raise translated(error, folder, _SHARD_BYTES) from error


def _measure(folder: Path, seconds: float, threads: int) -> DiskRates:
    free = free_bytes(folder)
    most = _MOST_BYTES if free is None else min(_MOST_BYTES, int(free * _SHARE_OF_FREE))
    written, took = _write(folder / "bytes", seconds / 2, max(most, _SHARD_BYTES))
    begun = time.perf_counter()
    for number in range(_SMALL_FILES):
        _durable(folder / f"small-{number}", b"{}")
    return DiskRates(
        write=written / took,
        read=_read(folder, written, seconds / 2, threads),
        files=_SMALL_FILES / (time.perf_counter() - begun),
    )


def _write(path: Path, seconds: float, most: int) -> tuple[int, float]:
    """Bytes written, of which none compress, and the seconds until they were durable."""
    data = os.urandom(_SHARD_BYTES)
    written, begun = 0, time.perf_counter()
    with path.open("wb", buffering=0) as file:
        while written < most and (not written or time.perf_counter() - begun < seconds):
            written += file.write(data)
            os.fsync(file.fileno())  # as shards are, each on its own; and the bytes can leave the page cache
        return written, time.perf_counter() - begun


def _durable(path: Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(folder: Path, size: int, seconds: float, threads: int) -> float:
    """Bytes a second through the store's own reader, each thread taking the next chunk."""
    with (folder / "bytes").open("rb") as file:
        if hasattr(os, "posix_fadvise"):  # elsewhere (macOS) nothing puts a file out of memory, and it is read warm
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    files, chunks, begun = LocalFiles(folder), count(), time.perf_counter()

    def work() -> int:
        out, done = memoryview(bytearray(_CHUNK_BYTES)), 0
        for chunk in chunks:
            offset = chunk * _CHUNK_BYTES
            if offset >= size or (chunk >= threads and time.perf_counter() - begun > seconds):
                return done
            part = out[: min(_CHUNK_BYTES, size - offset)]
            files.read_range("bytes", offset, part)
            done += len(part)
        return done

    with ThreadPoolExecutor(threads, "sherl-cache advise") as pool:
        done = sum(pool.map(lambda _: work(), range(threads)))
    return done / (time.perf_counter() - begun)
