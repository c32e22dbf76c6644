"""Leases: who is at work on which unit, so that several writers of one store do not do the same work.

    sherl/leases/<unit>.<number>.json    {"writer": ..., "beat": ...}; the highest number of a unit counts

A writer takes a unit by publishing the next number, which the first one wins, and raises `beat` while it holds it.
Others call it dead when its process has certainly ended, or when `beat` stood still for `lease_seconds` of their own
monotonic clock: no wall clock, no file times, no locks. Leases save work and nothing else: what two writers commit
is decided by commit.py, who takes which unit by claims.py; a lease that cannot be written is done without, and one
left behind is ignored.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from . import commit
from .documents import Document, parse
from .errors import SherlCacheError
from .processes import host_and_pid, is_gone, process_name
from .readers.contract import Files
from .readers.local import LocalFiles

LEASE_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 3.0
"""How long a network file system may answer from its cache of attributes (acregmin of NFS)."""

FOLDER: Final = "sherl/leases"
_RECEIPTS: Final = "sherl/receipts"
_FILE: Final = re.compile(r"^(?P<unit>.+)\.(?P<number>\d{1,9})\.json$")
_LEASE_BYTES: Final = 4096


class Lease(Document):
    """One writer holds one unit."""

    writer: Annotated[str, Field(max_length=256)]
    beat: Annotated[int, Field(ge=0)]


def drop(root: Path, unit: str | None = None) -> None:
    """Remove the leases of the unit of that name, or of every unit; what cannot be removed does no harm."""
    for path, name, _ in listed(LocalFiles(root)):
        if unit in (None, name):
            with contextlib.suppress(SherlCacheError):
                commit.remove(root / path)


def is_left(files: Files, path: str) -> bool:
    """Whether the lease at `path` is of a writer that has certainly ended, or that gave it up."""
    content = read(files, path)
    lease = parsed(content) if content else None
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
    for path, unit, number in listed(files):
        newest[unit] = max(newest.get(unit, (0, "")), (number, path))
    found = []
    for unit, (_, path) in sorted(newest.items()):
        content = read(files, path)
        lease = parsed(content) if content else None
        if lease is not None and not is_gone(lease.writer):
            found.append(Holder(unit, lease.writer, lease.beat))
    return found


def wait_for_others(root: Path, settle_seconds: float = SETTLE_SECONDS) -> bool:
    """Whether another writer may be at work; then waits until what it committed can be seen here."""
    files = LocalFiles(root)
    others = [lease for lease in _leases(files) if lease is None or not _is_over(lease.writer)]
    if others:
        time.sleep(settle_seconds)
        refresh(files)
    return bool(others)


def _is_over(writer: str) -> bool:
    """Whether a lease's writer is this process, or one that has certainly ended."""
    return writer.startswith(process_name()) or is_gone(writer)


def refresh(files: Files) -> None:
    """Read the folder of receipts: a client of NFS then forgets the names that it found missing before."""
    files.names(_RECEIPTS)


def path_of(unit_name: str, number: int) -> str:
    """Where the lease of that number of a unit is."""
    return f"{FOLDER}/{unit_name}.{number}.json"


def listed(files: Files) -> Iterator[tuple[str, str, int]]:
    """Path, unit and number of every lease."""
    with contextlib.suppress(SherlCacheError):
        for name in files.names(FOLDER):
            if found := _FILE.match(name):
                yield f"{FOLDER}/{name}", found["unit"], int(found["number"])


def _leases(files: Files) -> Iterator[Lease | None]:
    """Every lease; None for one that cannot be read."""
    for path, _, _ in listed(files):
        content = read(files, path)
        if content is not None:
            yield parsed(content)


def read(files: Files, path: str) -> bytes | None:
    """The bytes of a lease; None where it is gone, nothing where it cannot be read."""
    try:
        return files.read(path, _LEASE_BYTES)
    except SherlCacheError:
        return b""


def parsed(content: bytes) -> Lease | None:
    """What a lease says; None where it is none."""
    try:
        return parse(Lease, content, FOLDER)
    except SherlCacheError:
        return None
