"""Raw bytes from local files: regular files only, never through a symbolic link, nothing outside the
store.

Places of a chunk's rows are given to libc's `preadv` as a table of addresses; where it cannot be had, to `os.preadv` as
buffers. Where the system has no `preadv` (macOS before 11), ranges are read by `pread` and copied; where it has no
`posix_fadvise` (macOS), nothing is told ahead and the system's own read-ahead is all there is.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import keys
from ..documents import is_relative_path
from ..errors import AccessDenied, StoreCorrupt
from .descriptors import Descriptors
from .pieces import ENTRY_BYTES, Memory, Pieces

_COPIED_BYTES: Final = 1 << 20


def _read_copying(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
    """`os.preadv` for systems that lack it; like it, it may read less than asked."""
    for buffer in buffers:
        if buffer.nbytes:
            data = os.pread(descriptor, min(buffer.nbytes, _COPIED_BYTES), offset)
            buffer[: len(data)] = data
            return len(data)
    return 0


def _preadv_of_libc() -> Callable[[int, int, int, int], int] | None:
    """libc's preadv (descriptor, address of a table, its rows, offset), which takes the places as a table; None where
    there is none, or addresses and offsets have not 64 bits.

    Its errors are not looked at: who meets one calls `os.preadv`, which says the same in Python's words.
    """
    if not hasattr(os, "preadv") or {ctypes.sizeof(ctypes.c_void_p), ctypes.sizeof(ctypes.c_long)} != {8}:
        return None
    try:
        function = ctypes.CDLL(None).preadv
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long)
    function.restype = ctypes.c_ssize_t
    return function


_preadv_table = _preadv_of_libc()
_preadv = getattr(os, "preadv", _read_copying)
_fadvise = getattr(os, "posix_fadvise", None)
_NOWAIT: Final[int | None] = getattr(os, "RWF_NOWAIT", None)
_MOST_BUFFERS: Final = max(16, min(1024, os.sysconf("SC_IOV_MAX")))
"""Buffers of one scattering call."""


def _in_cache(descriptor: int, offset: int) -> bool:
    """Whether a byte of a file can be had without waiting; no where the system cannot tell.

    Advice about what is in the page cache already costs a tenth of reading it: the system looks at every page.
    """
    if _NOWAIT is None:
        return False
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, _NOWAIT) == 1
    except OSError:
        return False


def _read_table(descriptor: int, table: NDArray[np.uint64], offset: int) -> int:
    """Fill the places of a table (`Pieces.table`) as far as single calls do so; the bytes read, possibly 0."""
    if _preadv_table is None:
        return 0
    address, rows = table.ctypes.data, len(table)
    if rows <= _MOST_BUFFERS:
        return max(_preadv_table(descriptor, address, rows, offset), 0)
    done = 0
    for first in range(0, rows, _MOST_BUFFERS):
        some = table[first : first + _MOST_BUFFERS]
        count = _preadv_table(descriptor, address + first * ENTRY_BYTES, len(some), offset + done)
        done += max(count, 0)
        if count != int(some[:, 1].sum()):
            break
    return done


class LocalFiles:
    """The files of one store, by their paths in it."""

    copies: Final = 0

    def __init__(self, root: Path) -> None:
        self.root = root
        self._at = f"{root}{os.sep}"  # joining paths by pathlib takes longer than looking a file up
        self._folders: set[str] = set()
        self._descriptors = Descriptors()

    def place(self, path: str) -> str:
        """A path as messages show it; the store's own place for an empty one."""
        return str(self.root / path)

    def size(self, path: str) -> int | None:
        """Bytes of a regular file; None where there is none.

        Raises StoreCorrupt for a link or another kind of file.
        """
        self._check_folders(path)
        try:
            found = os.lstat(self._at + path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._denied(path, error) from error
        if not stat.S_ISREG(found.st_mode):
            raise StoreCorrupt(f"{self.root / path}: not a regular file; stores hold no links")
        return found.st_size

    def read(self, path: str, limit: int) -> bytes | None:
        """A whole file of at most `limit` bytes; None where there is none."""
        size = self.size(path)
        if size is None:
            return None
        if size > limit:
            raise StoreCorrupt(f"{self.root / path}: {size:,} bytes, at most {limit:,} can be right")
        data = bytearray(size)
        with self._opened(path) as descriptor:
            self._fill(path, descriptor, [memoryview(data)], 0)
        return bytes(data)

    def digest(self, path: str) -> tuple[int, str]:
        """Bytes and sha256 of a file."""
        with self._opened(path) as descriptor:
            return keys.digest_descriptor(descriptor)

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted; none where there is no such folder."""
        self._check_folders(f"{folder}/x")
        try:
            return sorted(os.listdir(self.root / folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._denied(folder, error) from error

    def read_range(self, path: str, offset: int, out: memoryview) -> None:
        """Fill `out` with bytes of a file from `offset` on.

        Raises StoreCorrupt where the file is missing or ends before.
        """
        self.read_scattered(path, offset, [out])

    def read_scattered(self, path: str, offset: int, buffers: list[memoryview]) -> None:
        """Fill `buffers`, one after another, with bytes of a file from `offset` on; the list is used up.

        Raises StoreCorrupt where the file is missing or ends before.
        """
        with self._descriptors.use(path, self._open) as descriptor:
            self._fill_all(path, descriptor, buffers, offset)

    def read_pieces(self, path: str, offset: int, pieces: Pieces, out: Memory, scratch: Memory) -> None:
        """Fill pieces of `out`, one after another, with bytes of a file from `offset` on, and `scratch` with those that
        go nowhere.

        Raises StoreCorrupt where the file is missing or ends before.
        """
        with self._descriptors.use(path, self._open) as descriptor:
            done = _read_table(descriptor, pieces.table(out, scratch), offset)
            if done < pieces.total:
                self._fill_all(path, descriptor, _behind(pieces.buffers(out, scratch), done), offset + done)

    def will_need(self, path: str, offset: int, count: int) -> bool:
        """Tell the system that a range is read soon, where it can be told; whether the range was in the page cache, or
        nothing can be told. Never fails.
        """
        if _fadvise is None:
            return True
        with suppress(OSError, StoreCorrupt, AccessDenied), self._descriptors.use(path, self._open) as descriptor:
            # Pages at its ends are shared with its neighbours, or read ahead with them, and say nothing.
            if all(_in_cache(descriptor, offset + count * part // 8) for part in (4, 7)):
                return True
            _fadvise(descriptor, offset, count, os.POSIX_FADV_WILLNEED)
        return False

    def keeping(self) -> AbstractContextManager[None]:
        """Keep descriptors of files that were read open meanwhile."""
        return self._descriptors.keeping()

    @contextmanager
    def _opened(self, path: str) -> Iterator[int]:
        descriptor = self._open(path)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, path: str) -> int:
        self._check_folders(path)
        try:
            descriptor = os.open(self._at + path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise StoreCorrupt(f"{self.root / path}: the file is missing") from None
        except OSError as error:
            raise self._denied(path, error) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise StoreCorrupt(f"{self.root / path}: not a regular file")
        return descriptor

    def _fill_all(self, path: str, descriptor: int, buffers: list[memoryview], offset: int) -> None:
        """Fill any number of buffers from a file."""
        for first in range(0, len(buffers), _MOST_BUFFERS):
            some = buffers[first : first + _MOST_BUFFERS]
            offset += self._fill(path, descriptor, some, offset)

    def _fill(self, path: str, descriptor: int, buffers: list[memoryview], offset: int) -> int:
        """Fill buffers from a file, however little one call reads; the bytes read."""
        total = sum(map(len, buffers))
        done = 0
        while done < total:
            try:
                count = _preadv(descriptor, buffers, offset + done)
            except OSError as error:
                raise self._denied(path, error) from error
            if count == 0:
                raise StoreCorrupt(f"{self.root / path}: the file ends at byte {offset + done:,}, more is needed")
            done += count
            if done < total:
                buffers = _behind(buffers, count)
        return total

    def _check_folders(self, path: str) -> None:
        if not is_relative_path(path):
            raise StoreCorrupt(f"{path!r} is not a name that a store may hold")
        folder, _, _ = path.rpartition("/")
        if not folder or folder in self._folders:
            return
        parts = folder.split("/")
        for end in range(1, len(parts) + 1):
            part = "/".join(parts[:end])
            if part in self._folders:
                continue
            try:
                found: Any = os.lstat(self._at + part)
            except FileNotFoundError:
                return
            except OSError as error:
                raise self._denied(part, error) from error
            if not stat.S_ISDIR(found.st_mode):
                raise StoreCorrupt(f"{self.root / part}: not a folder; stores hold no links")
            self._folders.add(part)

    def _denied(self, path: str, error: OSError) -> AccessDenied | StoreCorrupt:
        reason = os.strerror(error.errno) if error.errno is not None else str(error)
        if error.errno in (errno.EACCES, errno.EPERM):
            return AccessDenied(f"{self.root / path}: cannot be read ({reason}): ask its owner for permission")
        return StoreCorrupt(f"{self.root / path}: cannot be read ({reason})")


def _behind(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What of `buffers` is left when `count` bytes are filled."""
    for index, buffer in enumerate(buffers):
        if count < buffer.nbytes:
            return [buffer[count:], *buffers[index + 1 :]]
        count -= buffer.nbytes
    return []
