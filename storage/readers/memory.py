"""Raw bytes from this process's memory: small stores, tests, and nodes with more memory than disk."""

import hashlib
import os
import threading
from pathlib import Path
from typing import ClassVar, Final

from ..documents import is_relative_path
from ..errors import StoreCorrupt
from .local import LocalFiles


class MemoryFiles:
    """The files of one store, held as bytes; `MemoryFiles.named("x")` is what `memory://x` names."""

    copies: Final = 0
    _named: ClassVar[dict[str, "MemoryFiles"]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, name: str) -> None:
        self.name = name
        self._files: dict[str, bytes] = {}

    @classmethod
    def named(cls, name: str) -> "MemoryFiles":
        """The files of that name: the same ones for every caller in this process, empty at first."""
        with cls._lock:
            return cls._named.setdefault(name, cls(name))

    @classmethod
    def forget(cls, name: str) -> None:
        """Let go of the files of that name; stores that are open keep them until they are dropped."""
        with cls._lock:
            cls._named.pop(name, None)

    def load(self, folder: str | Path) -> "MemoryFiles":
        """Hold a copy of every file below a folder, in place of what was held. Raises StoreCorrupt for links and for
        names that a store may not have; the temporary files of writers are left out.
        """
        source = LocalFiles(Path(folder))
        held: dict[str, bytes] = {}
        for parent, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                path = (Path(parent) / name).relative_to(folder).as_posix()
                size = None if name.startswith(".") else source.size(path)
                if size is not None and (data := source.read(path, size)) is not None:
                    held[path] = data
        self._files = held
        return self

    def put(self, path: str, data: bytes) -> None:
        """Hold a file."""
        self._checked(path)
        self._files[path] = bytes(data)

    def remove(self, path: str) -> None:
        """Hold a file no longer. Raises KeyError where there is none."""
        del self._files[path]

    def place(self, path: str) -> str:
        """A path as messages show it; the store's own place for an empty one."""
        return f"memory://{self.name}" + (f"/{path}" if path else "")

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is none."""
        data = self._files.get(self._checked(path))
        return None if data is None else len(data)

    def read(self, path: str, limit: int) -> bytes | None:
        """A whole file of at most `limit` bytes; None where there is none."""
        data = self._files.get(self._checked(path))
        if data is not None and len(data) > limit:
            raise StoreCorrupt(f"{self.place(path)}: {len(data):,} bytes, at most {limit:,} can be right")
        return data

    def read_range(self, path: str, offset: int, out: memoryview) -> None:
        """Fill `out` with bytes of a file from `offset` on."""
        data = self._held(path)
        if len(data) - offset < out.nbytes:
            raise StoreCorrupt(f"{self.place(path)}: the file ends at byte {len(data):,}, more is needed")
        out.cast("B")[:] = memoryview(data)[offset : offset + out.nbytes]

    def digest(self, path: str) -> tuple[int, str]:
        """Bytes and sha256 of a file."""
        data = self._held(path)
        return len(data), hashlib.sha256(data).hexdigest()

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted; none where there is no such folder."""
        start = f"{self._checked(folder)}/"
        return sorted({path[len(start) :].partition("/")[0] for path in list(self._files) if path.startswith(start)})

    def _held(self, path: str) -> bytes:
        data = self._files.get(self._checked(path))
        if data is None:
            raise StoreCorrupt(f"{self.place(path)}: the file is missing")
        return data

    def _checked(self, path: str) -> str:
        if not is_relative_path(path):
            raise StoreCorrupt(f"{path!r} is not a name that a store may hold")
        return path
