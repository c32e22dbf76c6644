"""Giving a finished file its final name, which only the first of several writers gets.

A hard link does it, since it fails where the name is taken. Where a file system has no hard links, renameat2 without
replacing does the same, else an exclusive marker and a rename. Temporary names end in `.tmp` and carry the name of
their process, so that what killed processes left can be told.
"""

import contextlib
import errno
import itertools
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from . import keys
from .documents import FileRecord
from .errors import SherlCacheError
from .processes import is_gone, process_name
from .system import call

Accept = Callable[[Path], bool]

_ATTEMPTS: Final = 16
_MARKER_SECONDS: Final = 10.0
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_NO_RENAME: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_numbers: Final = itertools.count()


def claim(temporary: Path, path: Path, ours: FileRecord, accept: Accept | None) -> FileRecord:
    """Give a file its final name, or adopt what has that name: the record of the file that has it now.

    Another file that has it is adopted where it has the same bytes or `accept` says yes, and moved aside where not.
    """
    for _ in range(_ATTEMPTS):
        try:
            give_name(temporary, path)
        except FileExistsError:
            theirs = _record_of(path)
        except FileNotFoundError:
            # The temporary file was swept, which happens only once the store is complete.
            theirs = _record_of(path)
            if theirs is None:
                raise
        else:
            return ours
        if theirs is not None and (theirs == ours or (accept is not None and accept(path))):
            return theirs
        with contextlib.suppress(FileNotFoundError):
            call("rename", str(path), str(temporary_name(path)))
    raise SherlCacheError(f"{path}: could not be written, another process replaces it again and again")


def _record_of(path: Path) -> FileRecord | None:
    """Record of a regular file; None where there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        size, sha256 = keys.digest_descriptor(descriptor)
    finally:
        os.close(descriptor)
    return FileRecord(bytes=size, sha256=sha256)


def give_name(temporary: Path, path: Path) -> str:
    """Give a file a further name that must be free; says which way worked. Raises FileExistsError."""
    try:
        call("link", str(temporary), str(path))
    except FileExistsError:
        # A file server may answer a repeated request for a link that it made already.
        if not _same_file(temporary, path):
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _rename_new(temporary, path)
    return "link"


def _rename_new(temporary: Path, path: Path) -> str:
    try:
        call("rename_new", str(temporary), str(path))
    except OSError as error:
        if error.errno not in _NO_RENAME:
            raise
        _rename_behind_marker(temporary, path)
        return "marker"
    return "rename"


def _rename_behind_marker(temporary: Path, path: Path) -> None:
    marker = path.with_name(f".{path.name}.claim.tmp")
    give_up = time.monotonic() + _MARKER_SECONDS
    while True:
        try:
            descriptor = call("open", str(marker), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            break
        except FileExistsError:
            if path.exists():
                raise
            if time.monotonic() > give_up:  # its owner is gone
                unlink(marker)
            time.sleep(0.01)
    try:
        call("close", descriptor)
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        call("rename", str(temporary), str(path))
    finally:
        unlink(marker)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False


def unlink(path: Path) -> None:
    """Remove a file; it may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        call("unlink", str(path))


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nothing else has."""
    return path.with_name(f".{path.name}.{process_name()}-{next(_numbers)}.tmp")


def is_abandoned(name: str) -> bool:
    """Whether a name is a temporary one of a process that has certainly ended."""
    return is_temporary(name) and is_gone(name.removesuffix(".tmp").rpartition(".")[2])


def is_temporary(name: str) -> bool:
    """Whether a name is a temporary one, of a file or of a marker."""
    return name.startswith(".") and name.endswith(".tmp")
