"""Open descriptors that are used again: kept only while somebody asks for it, the least recently used closed first."""

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

_MOST: Final = 256


@dataclass
class _Entry:
    descriptor: int
    users: int = 0


class _Use:
    """One use of a descriptor. A class, since a generator's scope would cost more than what is done in it."""

    __slots__ = ("_entry", "_owner")

    def __init__(self, owner: "Descriptors", entry: _Entry) -> None:
        self._owner, self._entry = owner, entry

    def __enter__(self) -> int:
        return self._entry.descriptor

    def __exit__(self, *_: object) -> None:
        self._owner.release(self._entry)


class Descriptors:
    """Descriptors by path. Outside of `keeping` each is closed as soon as nobody uses it."""

    def __init__(self, most: int | None = None) -> None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = most or (_MOST if soft == resource.RLIM_INFINITY else max(1, min(_MOST, soft // 4)))
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._keepers = 0
        self._lock = threading.Lock()

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep descriptors open meanwhile, up to a limit; at the end of the last such scope all are closed."""
        with self._lock:
            self._keepers += 1
        try:
            yield
        finally:
            with self._lock:
                self._keepers -= 1
                self._close_idle(0 if self._keepers == 0 else self._most)

    def use(self, path: str, open_file: Callable[[str], int]) -> "_Use":
        """A scope with the descriptor of a path, opened by `open_file` where it is not open."""
        with self._lock:
            entry = self._entries.get(path)
            if entry is None:
                entry = self._entries[path] = _Entry(open_file(path))
            self._entries.move_to_end(path)
            entry.users += 1
        return _Use(self, entry)

    def release(self, entry: _Entry) -> None:
        """One user of a descriptor less."""
        with self._lock:
            entry.users -= 1
            self._close_idle(0 if self._keepers == 0 else self._most)

    def _close_idle(self, keep: int) -> None:
        if len(self._entries) <= keep:
            return
        for path in [path for path, entry in self._entries.items() if entry.users == 0][: len(self._entries) - keep]:
            os.close(self._entries.pop(path).descriptor)
