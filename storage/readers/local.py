"""Raw bytes from local files: regular files only, never through a symbolic link, nothing outside the
store.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from .. import keys
from ..documents import is_relative_path
from ..errors import AccessDenied, StoreCorrupt


class LocalFiles:
    """The files of one store, by their paths in it."""

    request_bytes: Final = 0
    copies: Final = 0

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: set[str] = set()

    def place(self, path: str) -> str:
        """A path as messages show it; the store's own place for an empty one."""
        return str(self.root / path)

    def size(self, path: str) -> int | None:
        """Bytes of a regular file; None where there is none.

        Raises StoreCorrupt for a link or another kind of file.
        """
        self._check_folders(path)
        try:
            found = os.lstat(self.root / path)
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
            self._fill(path, descriptor, memoryview(data), 0)
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
        with self._opened(path) as descriptor:
            self._fill(path, descriptor, out, offset)

    @contextmanager
    def _opened(self, path: str) -> Iterator[int]:
        self._check_folders(path)
        try:
            descriptor = os.open(self.root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise StoreCorrupt(f"{self.root / path}: the file is missing") from None
        except OSError as error:
            raise self._denied(path, error) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise StoreCorrupt(f"{self.root / path}: not a regular file")
            yield descriptor
        finally:
            os.close(descriptor)

    def _fill(self, path: str, descriptor: int, out: memoryview, offset: int) -> None:
        done = 0
        while done < out.nbytes:
            try:
                count = os.preadv(descriptor, [out[done:]], offset + done)
            except OSError as error:
                raise self._denied(path, error) from error
            if count == 0:
                raise StoreCorrupt(f"{self.root / path}: the file ends at byte {offset + done:,}, more is needed")
            done += count

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
                found: Any = os.lstat(self.root / part)
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
