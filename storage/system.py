"""The calls that change the disk: one seam, so that tests can make the n-th call fail or be the last one.

Every write of commit.py and naming.py goes through `call`, which repeats interrupted calls and turns what the system
answers into this project's errors.
"""

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from .errors import AccessDenied, OutOfSpace, SherlCacheError, UsageError

_INTERRUPTIONS: Final = 100
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_PERMISSION: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_BAD_PLACE: Final = frozenset({errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP})
_RENAME_NOREPLACE: Final = 1
_AT_FDCWD: Final = -100


class System:
    """The system calls that change the disk, one method each."""

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        """open(2), close-on-exec."""
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def writev(self, descriptor: int, buffers: Sequence[memoryview]) -> int:
        """writev(2): bytes written, which may be fewer than asked for."""
        return os.writev(descriptor, buffers)

    def fsync(self, descriptor: int) -> None:
        """fsync(2)."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """close(2)."""
        os.close(descriptor)

    def link(self, source: str, target: str) -> None:
        """link(2): fails where the target exists."""
        os.link(source, target)

    def rename(self, source: str, target: str) -> None:
        """rename(2): replaces the target."""
        os.rename(source, target)

    def rename_new(self, source: str, target: str) -> None:
        """renameat2(2) with RENAME_NOREPLACE: fails where the target exists, ENOSYS where there is no such
        call.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        renameat2 = getattr(libc, "renameat2", None)
        if renameat2 is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)
        answer = renameat2(
            _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(_RENAME_NOREPLACE)
        )
        if answer != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), target)

    def unlink(self, path: str) -> None:
        """unlink(2)."""
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        """mkdir(2)."""
        os.mkdir(path)


system: System = System()
"""What `call` uses; a test may put another one in its place."""


def call(name: str, *arguments: Any) -> Any:
    """One call of the seam, repeated while signals interrupt it.

    An interrupted close(2) is not: the descriptor is free by then, and may belong to another thread already.
    """
    function: Callable[..., Any] = getattr(system, name)
    for _ in range(_INTERRUPTIONS):
        try:
            return function(*arguments)
        except InterruptedError:
            if name == "close":
                return None
    return function(*arguments)


def translated(error: OSError, path: Path, size: int) -> SherlCacheError:
    """This project's error for what the system answered while `size` bytes were to be written at `path`."""
    reason = os.strerror(error.errno) if error.errno is not None else str(error)
    if error.errno in _NO_ROOM:
        return OutOfSpace(
            f"{path}: no room for {size:,} bytes ({reason}; {_free(path)}): free some space, "
            "then run the same command again to go on"
        )
    if error.errno in _NO_PERMISSION:
        return AccessDenied(f"{path}: cannot be written ({reason}): choose a place where you may write")
    if error.errno in _BAD_PLACE:
        return UsageError(f"{path}: cannot be written ({reason}): choose another place")
    return SherlCacheError(f"{path}: cannot be written ({reason})")


def _free(path: Path) -> str:
    for folder in path.parents:
        try:
            return f"{shutil.disk_usage(folder).free:,} bytes are free there"
        except OSError:
            continue
    return "free space unknown"
