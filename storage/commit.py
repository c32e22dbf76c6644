"""The only place that writes: a file is there whole, or it is not there.

To publish: write a temporary file in the same folder, fsync it, link it to its final name (which fails where
the name is taken, so the first of several writers wins), fsync the folder, remove the temporary name. A loser
of that race adopts the winner's file after checking it; a winner that fails the check is moved aside.
"""

import contextlib
import errno
import hashlib
import io
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from typing_extensions import Buffer

from .documents import FileRecord
from .naming import Accept, claim, give_name, is_abandoned, is_temporary, temporary_name, unlink
from .system import call, translated

_VECTOR: Final = 1024  # IOV_MAX: buffers in one writev
_EMPTY_WRITES: Final = 16
_durable_folders: Final[set[str]] = set()


class Pending(io.RawIOBase):
    """A file being written under a temporary name; `publish` gives it its final one. Also a binary file
    object.

    Leaving its context without publishing removes it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._hasher = hashlib.sha256()
        self._size = 0
        self._left = False
        self._descriptor = -1
        with _translating(path, 0):
            _make_folder(path.parent)
            self._temporary = temporary_name(path)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._descriptor = call("open", str(self._temporary), flags)
            self._left = True

    @property
    def record(self) -> FileRecord:
        """Size and digest of what was written so far."""
        return FileRecord(bytes=self._size, sha256=self._hasher.hexdigest())

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Buffer, /) -> int:
        """All of `data`; returns its bytes."""
        return self.write_all([data])

    def write_all(self, buffers: Sequence[Buffer]) -> int:
        """Every buffer in turn; returns their bytes. Short writes are continued."""
        views = [view for buffer in buffers if (view := memoryview(buffer).cast("B")).nbytes]
        total = sum(view.nbytes for view in views)
        for view in views:
            self._hasher.update(view)
        with _translating(self.path, total):
            done = empty = 0
            while done < len(views):
                written = call("writev", self._descriptor, views[done : done + _VECTOR])
                empty = 0 if written else empty + 1
                if empty == _EMPTY_WRITES:
                    raise OSError(errno.EIO, "the system takes no bytes and gives no reason")
                while written and written >= views[done].nbytes:
                    written -= views[done].nbytes
                    done += 1
                if written:
                    views[done] = views[done][written:]
        self._size += total
        return total

    def publish(self, accept: Accept | None = None) -> FileRecord:
        """Give the file its final name; the record is of the file that has that name now.

        Where the name is taken by other bytes, `accept` judges them: taken over when it says yes, else moved
        aside. A file whose fsync failed is removed and cannot be published: the kernel may have dropped its pages,
        and a second fsync would then succeed over bytes that are lost.
        """
        with _translating(self.path, self._size):
            self._sync()
            winner = claim(self._temporary, self.path, self.record, accept)
            sync_folder(self.path.parent)
            unlink(self._temporary)
        self._left = False
        return winner

    def close(self) -> None:
        """Remove the temporary file, if it was not published."""
        if self._left:
            self._left = False
            with contextlib.suppress(OSError):
                self._release()
                unlink(self._temporary)
        super().close()

    def _sync(self) -> None:
        try:
            call("fsync", self._descriptor)
        except OSError:
            self.close()
            raise
        self._release()

    def _release(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            call("close", descriptor)


def publish(path: Path, buffers: Sequence[Buffer], accept: Accept | None = None) -> FileRecord:
    """Publish the bytes of `buffers` as a new file at `path`; see `Pending.publish`.

    Raises OutOfSpace, AccessDenied, or SherlCacheError for other answers of the system.
    """
    with Pending(path) as pending:
        pending.write_all(buffers)
        return pending.publish(accept)


def replace(path: Path, data: bytes) -> None:
    """Write a file that may change later: the old bytes or the new ones are there at any instant."""
    with Pending(path) as pending, _translating(path, len(data)):
        pending.write(data)
        pending._sync()
        call("rename", str(pending._temporary), str(path))
        pending._left = False
        sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file that nothing names any more; it may be gone already."""
    with _translating(path, 0):
        unlink(path)


def set_aside(path: Path) -> None:
    """Take a damaged file out of the way, under a temporary name; there may be none."""
    with _translating(path, 0), contextlib.suppress(FileNotFoundError):
        call("rename", str(path), str(temporary_name(path)))


def settle(root: Path, *, but: str) -> None:
    """Make every name under `root` durable, whoever made it, except in the folder `but`, on which nothing rests.

    A writer that died between giving a name and syncing its folder leaves a file that is seen and that a power cut
    may still take away; what rests on such a file must not be durable before it is.
    """
    with _translating(root, 0):
        for folder, _, _ in os.walk(root):
            if Path(folder) != root / but:
                sync_folder(Path(folder))


def link_mode(folder: Path) -> str:
    """How files get their final names in that folder: `link`, `rename` or `marker`.

    Writes and removes a probe; raises what `publish` raises where nothing can be written.
    """
    with Pending(folder / "probe") as pending, _translating(folder, 0):
        target = temporary_name(folder / "probe-target")
        try:
            return give_name(pending._temporary, target)
        finally:
            unlink(target)


def sweep(root: Path, *, finished: Collection[str] = ()) -> list[Path]:
    """Remove temporary files under `root` whose process has certainly ended.

    finished: folders, by their paths under `root`, in which nobody has anything left to write: there all of them go.
    """
    removed = []
    for folder, _, names in os.walk(root):
        done = Path(folder).relative_to(root).as_posix() in finished
        for name in names:
            if is_temporary(name) if done else is_abandoned(name):
                path = Path(folder, name)
                with contextlib.suppress(OSError):  # another user's, say: it does no harm
                    unlink(path)
                    removed.append(path)
    return removed


def _make_folder(folder: Path) -> None:
    """Make a folder with its parents.

    Each is made durable once a process, also those that are there: another may have made one, then died. Folders
    that could not have been made from here are passed over.
    """
    if str(folder) in _durable_folders and folder.is_dir():
        return
    if folder.parent != folder and not os.path.ismount(folder):
        _make_folder(folder.parent)
        if not folder.is_dir():
            with contextlib.suppress(FileExistsError):
                call("mkdir", str(folder))
        if os.access(folder.parent, os.R_OK | os.W_OK):
            sync_folder(folder.parent)
    _durable_folders.add(str(folder))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = call("open", str(folder), os.O_RDONLY | os.O_DIRECTORY)
    try:
        call("fsync", descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync a folder
            raise
    finally:
        call("close", descriptor)


@contextlib.contextmanager
def _translating(path: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise translated(error, path, size) from error
