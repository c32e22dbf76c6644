"""Failing calls: every call of a build fails in turn, once for each way in which the system may refuse it.

    ENOSPC, EDQUOT   the disk or the quota is full: this call only, or this and every later one that takes room
    EIO, ESTALE      the device or the file server gives up
    EINTR            the call is interrupted, once, or every time from then on
    short, nothing   a write takes one byte, or none; none at all from then on

After each: the error is ours with the documented exit code, no descriptor is left open, what is there is served rightly or
refused, and the same command ends in the unbroken digest with no temporary file left. A close that fails has closed
its descriptor, as on Linux.
"""

from __future__ import annotations

import errno
import gc
import os
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any

from sherl_cache.storage import Store
from sherl_cache.storage.errors import (
    SherlCacheError,
    StoreCorrupt,
    StoreIncomplete,
    StoreMissing,
)

from .row import Row, Scale
from .seam import Unsynced, Watched, installed
from .small import Small, contents, differing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NUMBERS = {"ENOSPC": 6, "EDQUOT": 6, "EIO": 1, "ESTALE": 1}
KINDS = (*NUMBERS, "ENOSPC for good", "EIO for good", "EINTR", "EINTR for good", "short", "nothing", "nothing for good")
HARMLESS = ("EINTR", "short", "nothing")
_ROOM = ("open", "writev", "link", "mkdir")
_STRIDE = 43  # of the calls, in a quick run


def failing(kind: str, at: int) -> Callable[[int, str, tuple[Any, ...]], tuple[Any] | None]:
    """What stands before each call so that call `at` fails in the way of `kind`, and later ones where it is for good."""
    way, _, lasting = kind.partition(" ")

    def before(number: int, name: str, arguments: tuple[Any, ...]) -> tuple[Any] | None:
        if number != at and not (lasting and number > at):
            return None
        if way in ("short", "nothing"):
            if name != "writev":
                return None
            return (os.write(arguments[0], bytes(arguments[1][0])[:1]) if way == "short" else 0,)
        if number > at and name not in _ROOM and way == "ENOSPC":
            return None
        if name == "close":
            os.close(arguments[0])
        code = getattr(errno, way)
        raise OSError(code, os.strerror(code))

    return before


def fail_once(
    small: Small, root: Path, kind: str, at: int, writers: int, right: dict[str, Any], digest: str
) -> list[str]:
    """One build whose call `at` fails: what it showed, in words; what must not be begins with `WRONG`."""
    watched = Watched(failing(kind, at))
    descriptors = _descriptors()
    shown = []
    with installed(watched):
        try:
            _build(small, root, writers)
        except SherlCacheError as error:
            shown.append(f"exit code {error.exit_code}")
            expected = NUMBERS.get(kind.partition(" ")[0], 1)
            if kind in HARMLESS or error.exit_code != expected:
                shown.append(f"WRONG: {kind} ends with exit code {error.exit_code}: {error}")
        except OSError as error:
            shown.append(f"WRONG: not our error: {error!r}")
        else:
            shown.append("went on")
            if kind in NUMBERS and watched.count >= at:
                shown.append(f"WRONG: {kind} was not noticed")
    if watched.opened or _left_open(descriptors):
        shown.append("WRONG: a descriptor is left open")
    for partial in (False, True):
        try:
            found = contents(Store.open(root, allow_partial=partial))
        except (StoreCorrupt, StoreIncomplete, StoreMissing) as error:
            if isinstance(error, StoreCorrupt):
                shown.append(f"WRONG: damaged by a failing call: {error}")
        else:
            shown += [f"WRONG bytes of {name}" for name in differing(found, right)]
    with installed(Unsynced()):
        store = small.build(root)
    if store.digest != digest:
        shown.append("WRONG digest after the same command")
    shown += [f"WRONG after the same command: {finding.problem}" for finding in store.verify(deep=True)]
    shown += [f"WRONG: {path} is left" for path in root.rglob("*.tmp")]
    return shown


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _left_open(before: int) -> bool:
    """Whether more descriptors are open than before, also after objects that hold one another were collected."""
    if _descriptors() > before:
        gc.collect()
    return _descriptors() > before


def _build(small: Small, root: Path, writers: int) -> None:
    """A build; with two writers each does every unit that the other has not committed, in turn."""
    if writers == 1:
        small.build(root)
        return
    one, other = small.create(root), small.create(root)
    for number, unit in enumerate(one.missing()):
        for writer in (one, other) if number % 2 else (other, one):
            small.fill(writer, unit)
    one.finalize()
    other.finalize()


def calls(small: Small, root: Path, writers: int) -> int:
    """Calls of a whole build."""
    watched = Watched()
    with installed(watched):
        _build(small, root, writers)
    return watched.count


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """One row for one and one for two writers."""
    small = Small(examples={"train": 16}, taps=(0,))
    with installed(Unsynced()):
        whole = small.build(folder / "whole")
    right, digest = contents(whole), whole.digest
    for writers in (1, 2):
        most = calls(small, folder / f"counted-{writers}", writers)
        shown: Counter[str] = Counter()
        wrong = []
        tried = 0
        for order, kind in enumerate(KINDS):
            stride = scale.of(1, _STRIDE)
            for at in range(1 + (order + scale.seed) % stride, most + 1, stride):
                root = folder / "failing"
                seen = fail_once(small, root, kind, at, writers, right, digest)
                shutil.rmtree(root)
                tried += 1
                shown.update(f"{kind}: {what}" for what in seen if not what.startswith("WRONG"))
                wrong += [f"{kind} at call {at}: {what}" for what in seen if what.startswith("WRONG")]
        yield Row(
            f"failing calls, {writers} writer{'s' if writers > 1 else ''}",
            "store readable, resume finishes, exit code 6 or 1",
            f"{tried:,} failures over {most} calls and {len(KINDS)} kinds: {len(wrong)} wrong",
            not wrong,
            {"failures": tried, "calls": most, "shown": dict(shown), "wrong": wrong[:20]},
        )
