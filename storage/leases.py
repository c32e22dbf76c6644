"""Leases: who is at work on which unit, so that several writers of one store do not do the same work.

    sherl/leases/<unit>.<number>.json    {"writer": ..., "beat": ...}; the highest number of a unit counts

A writer takes a unit by publishing the next number, which the first one wins, and raises `beat` while it holds it.
Others call it dead when its process has certainly ended, or when `beat` stood still for `lease_seconds` of their own
monotonic clock: no wall clock, no file times, no locks. Leases save work and nothing else: what two writers commit
is decided by commit.py, a lease that cannot be written is done without, and a lease left behind is ignored.
"""

import contextlib
import hashlib
import itertools
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from . import commit
from .documents import Document, Unit, parse
from .errors import SherlCacheError
from .processes import host_and_pid, is_gone, process_name
from .readers.contract import Files
from .readers.local import LocalFiles

if TYPE_CHECKING:
    from .writer import StoreWriter

LEASE_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 3.0
"""How long a network file system may answer from its cache of attributes (acregmin of NFS)."""

FOLDER: Final = "sherl/leases"
_RECEIPTS: Final = "sherl/receipts"
_FILE: Final = re.compile(r"^(?P<unit>.+)\.(?P<number>\d{1,9})\.json$")
_LEASE_BYTES: Final = 4096
_BEATS_A_LEASE: Final = 4
_LISTED_SECONDS: Final = 0.5
"""How long a look at the folder of leases is good for: who publishes a number that is taken meanwhile finds that out."""
_POLL_SECONDS: Final = (0.02, 1.0)
_writers: Final = itertools.count()


class Lease(Document):
    """One writer holds one unit."""

    writer: Annotated[str, Field(max_length=256)]
    beat: Annotated[int, Field(ge=0)]


@contextlib.contextmanager
def claim_units(
    writer: "StoreWriter",
    *,
    lease_seconds: float = LEASE_SECONDS,
    settle_seconds: float = SETTLE_SECONDS,
    skipped: Callable[[Unit], None] = lambda unit: None,
    waiting: Callable[[int], None] = lambda units: None,
) -> Iterator["Claims"]:
    """The missing units that this writer shall do, one at a time, until none is missing but those it was given.

    Units that no living writer holds come first, beginning at a place of this writer's own; then it waits for the
    others, and takes over the units of those that died. `skipped` is told each unit that another writer committed;
    `waiting`, again and again while there is nothing else to do, how many units others still hold: it may raise. A
    unit counts as held until `writer.write` committed it, until `ended` is told, or until the context ends.

    lease_seconds: a writer that gives no sign of life for so long is taken for dead, by this writer's clock; the same
    for every writer of a store. settle_seconds: how long a unit that another writer let go of is awaited before it is
    done again, since a file system may show a receipt late.
    """
    claims = Claims(writer, lease_seconds, settle_seconds, skipped, waiting)
    ended = threading.Event()
    heart = threading.Thread(target=claims.beat, args=(ended,), name="sherl-cache leases", daemon=True)
    heart.start()
    try:
        yield claims
    finally:
        ended.set()
        heart.join()
        claims.release()


def drop(root: Path, unit: str | None = None) -> None:
    """Remove the leases of the unit of that name, or of every unit; what cannot be removed does no harm."""
    for path, name, _ in _listed(LocalFiles(root)):
        if unit in (None, name):
            with contextlib.suppress(SherlCacheError):
                commit.remove(root / path)


def is_left(files: Files, path: str) -> bool:
    """Whether the lease at `path` is of a writer that has certainly ended, or that gave it up."""
    content = _read(files, path)
    lease = _parsed(content) if content else None
    return lease is not None and is_gone(lease.writer)


@dataclass(frozen=True)
class Holder:
    """A writer at work on a unit: its name, the host and the process number in it, and its beat."""

    unit: str
    writer: str
    beat: int

    @property
    def host(self) -> str:
        return host_and_pid(self.writer)[0]

    @property
    def pid(self) -> int:
        return host_and_pid(self.writer)[1]


def holders(files: Files) -> list[Holder]:
    """Who holds which unit, by unit, as the newest lease of each says; writers that have certainly ended are left out.

    A writer on another host that died may be among them until another takes its unit over.
    """
    newest: dict[str, tuple[int, str]] = {}
    for path, unit, number in _listed(files):
        newest[unit] = max(newest.get(unit, (0, "")), (number, path))
    found = []
    for unit, (_, path) in sorted(newest.items()):
        content = _read(files, path)
        lease = _parsed(content) if content else None
        if lease is not None and not is_gone(lease.writer):
            found.append(Holder(unit, lease.writer, lease.beat))
    return found


def wait_for_others(root: Path, settle_seconds: float = SETTLE_SECONDS) -> bool:
    """Whether another writer may be at work; then waits until what it committed can be seen here."""
    files = LocalFiles(root)
    others = [lease for lease in _leases(files) if lease is None or not _is_over(lease.writer)]
    if others:
        time.sleep(settle_seconds)
        _refresh(files)
    return bool(others)


class Claims(Iterator[Unit]):
    """The units of one writer: taken, kept alive, let go."""

    def __init__(
        self,
        writer: "StoreWriter",
        lease_seconds: float,
        settle_seconds: float,
        skipped: Callable[[Unit], None],
        waiting: Callable[[int], None],
    ) -> None:
        self._writer = writer
        self._root, self._files = writer.root, LocalFiles(writer.root)
        self._lease_seconds = lease_seconds
        self._settle_seconds = settle_seconds
        self._skipped, self._waiting = skipped, waiting
        self._name = f"{process_name()}-{next(_writers)}"
        self._held: dict[Unit, int] = {}
        """Units taken and not known as committed, with the number of the lease."""
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[bytes | None, float]] = {}
        """What was last read of another writer's lease (None: it went away), and since when."""
        self._numbers: dict[str, int] = {}
        """By unit, the highest number of its leases, when the folder was last looked at."""
        self._looked_at = float("-inf")
        self._units = self._each()

    def __next__(self) -> Unit:
        return next(self._units)

    def ended(self, unit: Unit) -> None:
        """A unit that was committed elsewhere for this writer: its lease is gone, and needs no sign of life."""
        self._forget(unit)

    def _each(self) -> Iterator[Unit]:
        missing = self._writer.missing()
        first = int.from_bytes(hashlib.sha256(self._name.encode()).digest()[:8]) % max(len(missing), 1)
        left = deque(missing[first:] + missing[:first])
        pause = _POLL_SECONDS[0]
        while left:
            held: deque[Unit] = deque()
            moved = False
            self._looked_at = float("-inf")
            while left:
                unit = left.popleft()
                if self._writer.committed(unit):
                    self._skipped(unit)
                    moved = True
                elif self._take(unit):
                    moved = True
                    if self._writer.committed(unit):  # between the look and the lease
                        self._let_go(unit)
                        self._skipped(unit)
                    else:
                        yield unit
                else:
                    held.append(unit)
            left = held
            if left:
                self._waiting(len(left))
                pause = _POLL_SECONDS[0] if moved else min(2 * pause, _POLL_SECONDS[1], self._lease_seconds / 8)
                time.sleep(pause)

    def beat(self, ended: threading.Event) -> None:
        """Show that this writer is alive, a few times a lease, until `ended`."""
        beat = 0
        while not ended.wait(self._lease_seconds / _BEATS_A_LEASE):
            beat += 1
            with self._lock:
                held = dict(self._held)
            for unit, number in held.items():
                with contextlib.suppress(SherlCacheError):
                    if self._writer.committed(unit):
                        self._forget(unit)
                    else:
                        commit.replace(self._root / _path(unit.name, number), self._lease(beat))

    def release(self) -> None:
        """Let go of everything."""
        for unit in list(self._held):
            self._let_go(unit)

    def _take(self, unit: Unit) -> bool:
        """Whether the unit is this writer's now; False where a living writer holds it, or may have committed it."""
        number, content = self._newest(unit)
        if content is None:
            if number:
                self._since(unit, None)
            seen = self._seen.get(unit.name)
            if seen is not None:  # let go of, or committed out of our sight
                since = self._since(unit, None)
                if time.monotonic() - since < self._settle_seconds:
                    return False
                _refresh(self._files)
                if self._writer.committed(unit):
                    return False
        elif not self._is_dead(unit, content):
            return False
        lease = self._lease(0)
        try:
            mine = commit.publish(self._root / _path(unit.name, number + 1), [lease], accept=lambda _: True)
        except SherlCacheError:  # no room, no permission: the work goes on without
            taken = True
        else:
            taken = not mine.file_differs(lease)
        if not taken:
            self._since(unit, b"")  # somebody has it: what becomes of it is worth a wait
        else:
            with self._lock:
                self._held[unit] = number + 1
        return taken

    def _newest(self, unit: Unit) -> tuple[int, bytes | None]:
        """The highest number of a unit's leases, 0 for none, and what that lease says."""
        if time.monotonic() - self._looked_at >= _LISTED_SECONDS:
            self._numbers, self._looked_at = {}, time.monotonic()
            for _, name, number in _listed(self._files):
                self._numbers[name] = max(number, self._numbers.get(name, 0))
        number = self._numbers.get(unit.name, 0)
        return number, _read(self._files, _path(unit.name, number)) if number else None

    def _is_dead(self, unit: Unit, content: bytes) -> bool:
        lease = _parsed(content)
        if lease is not None and is_gone(lease.writer):
            return True
        return time.monotonic() - self._since(unit, content) >= self._lease_seconds

    def _since(self, unit: Unit, content: bytes | None) -> float:
        """Since when, by this process's clock, the unit's lease reads like this."""
        seen = self._seen.get(unit.name)
        if seen is None or seen[0] != content:
            seen = self._seen[unit.name] = content, time.monotonic()
        return seen[1]

    def _lease(self, beat: int) -> bytes:
        return Lease(writer=self._name, beat=beat).to_bytes()

    def _let_go(self, unit: Unit) -> None:
        number = self._forget(unit)
        if number is not None:
            with contextlib.suppress(SherlCacheError):
                commit.remove(self._root / _path(unit.name, number))

    def _forget(self, unit: Unit) -> int | None:
        with self._lock:
            return self._held.pop(unit, None)


def _is_over(writer: str) -> bool:
    """Whether a lease's writer is this process, or one that has certainly ended."""
    return writer.startswith(process_name()) or is_gone(writer)


def _refresh(files: Files) -> None:
    """Read the folder of receipts: a client of NFS then forgets the names that it found missing before."""
    files.names(_RECEIPTS)


def _path(unit_name: str, number: int) -> str:
    return f"{FOLDER}/{unit_name}.{number}.json"


def _listed(files: Files) -> Iterator[tuple[str, str, int]]:
    """Path, unit and number of every lease."""
    with contextlib.suppress(SherlCacheError):
        for name in files.names(FOLDER):
            if found := _FILE.match(name):
                yield f"{FOLDER}/{name}", found["unit"], int(found["number"])


def _leases(files: Files) -> Iterator[Lease | None]:
    """Every lease; None for one that cannot be read."""
    for path, _, _ in _listed(files):
        content = _read(files, path)
        if content is not None:
            yield _parsed(content)


def _read(files: Files, path: str) -> bytes | None:
    """The bytes of a lease; None where it is gone, nothing where it cannot be read."""
    try:
        return files.read(path, _LEASE_BYTES)
    except SherlCacheError:
        return b""


def _parsed(content: bytes) -> Lease | None:
    try:
        return parse(Lease, content, FOLDER)
    except SherlCacheError:
        return None
