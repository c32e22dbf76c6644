"""What a place that holds a store must answer: the one door through which storage reads."""

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from .pieces import Memory, Pieces


class Files(Protocol):
    """The files of one store, by their paths in it: relative, with `/`, never leaving the store.

    Every method raises StoreCorrupt for a path that a store may not hold and for what is no regular file, AccessDenied
    where permission is lacking, RemoteUnavailable where a place on the network does not answer. Threads may share one.
    """

    @property
    def copies(self) -> int:
        """How often `read_range` holds what it reads beside `out` while it runs: 0 or 1."""
        ...

    def place(self, path: str) -> str:
        """A path as messages show it: with the store's own place before it; that place for an empty one."""
        ...

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is none."""
        ...

    def read(self, path: str, limit: int) -> bytes | None:
        """A whole file of at most `limit` bytes, StoreCorrupt for a larger one; None where there is none."""
        ...

    def read_range(self, path: str, offset: int, out: memoryview) -> None:
        """Fill `out` with bytes from `offset` on. Raises StoreCorrupt where the file is missing or ends before."""
        ...

    def digest(self, path: str) -> tuple[int, str]:
        """Bytes and sha256 of a file."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted; none where there is no such folder."""
        ...


@runtime_checkable
class ScatteringFiles(Files, Protocol):
    """Files that can be read straight into many places of memory: local ones."""

    def read_scattered(self, path: str, offset: int, buffers: list[memoryview]) -> None:
        """Fill `buffers`, one after another, with bytes from `offset` on; errors as of `read_range`."""
        ...

    def read_pieces(self, path: str, offset: int, pieces: Pieces, out: Memory, scratch: Memory) -> None:
        """Fill pieces of `out`, one after another, with bytes from `offset` on, and `scratch` with those that go nowhere;
        errors as of `read_range`.
        """
        ...

    def will_need(self, path: str, offset: int, count: int) -> bool:
        """Tell the system that a range is read soon, and whether it has been in memory; never fails."""
        ...

    def keeping(self) -> AbstractContextManager[None]:
        """Keep files that were read open meanwhile."""
        ...
