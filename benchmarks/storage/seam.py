"""The seam of system calls, watched: what a writer asks of the system, and what happens when it answers otherwise."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sherl_cache.storage import commit, processes, system

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = ("open", "writev", "fsync", "close", "link", "rename", "rename_new", "unlink", "mkdir")


class Killed(BaseException):
    """The process is gone: no clean-up follows."""


@dataclass(frozen=True)
class Call:
    """A call that succeeded; the buffers of a write are replaced by the bytes written. `mark`: a note, no call."""

    name: str
    arguments: tuple[Any, ...]
    answer: Any = None


class Unsynced(system.System):
    """Real calls without fsync: for thousands of stores that need not outlive the benchmark."""

    def fsync(self, descriptor: int) -> None:
        """Nothing."""


class Watched(Unsynced):
    """Real calls without fsync, counted and recorded; `before(number, name, arguments)` may raise, or answer in place of a call.

    Its answer is a 1-tuple; a close that it fails must have closed. `dead`: every further call ends in Killed.
    """

    def __init__(self, before: Callable[[int, str, tuple[Any, ...]], tuple[Any] | None] | None = None) -> None:
        self.count = 0
        self.dead = False
        self.log: list[Call] = []
        self.opened: set[int] = set()
        self.before = before

    def mark(self, *what: str) -> None:
        """Note in the log that something was promised to the caller."""
        self.log.append(Call("mark", what))

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in NAMES:
            return found

        def watched(*arguments: Any) -> Any:
            if self.dead:
                raise Killed
            self.count += 1
            if name == "close":
                self.opened.discard(arguments[0])
            instead = None if self.before is None else self.before(self.count, name, arguments)
            answer = found(*arguments) if instead is None else instead[0]
            if name == "open":
                self.opened.add(answer)
            kept = arguments
            if name == "writev":
                kept = arguments[0], b"".join(arguments[1])[:answer]
            self.log.append(Call(name, kept, answer))
            return answer

        return watched

    def close_left(self) -> int:
        """Close what was left open, as the end of a process does; how many."""
        left = len(self.opened)
        for descriptor in self.opened:
            os.close(descriptor)
        self.opened.clear()
        return left


@contextmanager
def installed(other: system.System) -> Iterator[None]:
    """That system in place of the real one, in what commit.py takes for a process of its own."""
    real, system.system = system.system, other
    new_process()
    try:
        yield
    finally:
        system.system = real
        new_process()


def new_process() -> None:
    """Forget what this process knows of folders that it made durable, and its name, so that the one before is gone."""
    commit._durable_folders.clear()
    processes._name_of.cache_clear()


class LastCall(system.System):
    """The process is killed right after its n-th call that changes the disk."""

    def __init__(self, number: int) -> None:
        self._left = number

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in NAMES:
            return found

        def counted(*arguments: Any) -> Any:
            answer = found(*arguments)
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return counted
