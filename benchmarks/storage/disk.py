"""What the disk itself gives: files put out of the page cache, read one after another, and counted."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BUFFER_BYTES = 8 << 20
COLD_SHARE = 0.9  # of the bytes must come from the device for a pass to count as cold


def forget(paths: Sequence[Path]) -> None:
    """Put files out of the page cache, as far as the system does so."""
    for path in paths:
        with opened(path) as descriptor:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def resident_share(paths: Sequence[Path]) -> float:
    """Share of the pages of some files that the page cache holds."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    pages = held = 0
    for path in paths:
        if not (size := path.stat().st_size):
            continue
        with opened(path) as descriptor:
            address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
            if address == ctypes.c_void_p(-1).value:
                raise OSError(ctypes.get_errno(), "mmap", str(path))
            flags = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
            if libc.mincore(address, size, flags):
                raise OSError(ctypes.get_errno(), "mincore", str(path))
            libc.munmap(address, size)
        pages += len(flags.raw)
        held += sum(flag & 1 for flag in flags.raw)
    return held / max(pages, 1)


def read_through(paths: Sequence[Path], threads: int, memory_bytes: int = BUFFER_BYTES) -> float:
    """Seconds to read whole files sequentially by `preadv` into reused memory; file i goes to thread i modulo threads.

    memory_bytes: of a thread, filled 8 MiB at a time from beginning to end and over again; 8 MiB stay in the processor's
    cache, more is written to memory itself. It begins with a page and is not new: where a buffer lies decides how fast
    the system copies into it, by a factor of up to 3, and that must not be left to the allocator.
    """

    def work(mine: Sequence[Path], parts: list[memoryview]) -> None:
        at = 0
        for path in mine:
            with opened(path) as descriptor:
                offset = 0
                while count := os.preadv(descriptor, [parts[at]], offset):
                    offset += count
                    at = (at + 1) % len(parts)

    whole = [_aligned(memory_bytes) for _ in range(threads)]
    buffers = [[part[at : at + BUFFER_BYTES] for at in range(0, memory_bytes, BUFFER_BYTES)] for part in whole]
    begun = time.perf_counter()
    workers = [threading.Thread(target=work, args=(paths[i::threads], buffers[i])) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - begun


def _aligned(count: int) -> memoryview:
    """Memory that begins with a page and has been written to."""
    memory = np.empty(count + mmap.PAGESIZE, np.uint8)
    begin = -memory.ctypes.data % mmap.PAGESIZE
    memory[:] = 0
    return memory[begin : begin + count].data


def io_counters() -> tuple[int, int]:
    """Bytes that this process has asked for by reading, and those fetched from a device for it, so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text("ascii").splitlines())
    return int(fields["rchar"]), int(fields["read_bytes"])


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor for reading."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
