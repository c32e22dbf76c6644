"""Failing calls: every call of each command of scenarios.py fails in turn, once for each way in which the system may refuse it.

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
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any

from sherl_cache.storage import claims, leases
from sherl_cache.storage.errors import SherlCacheError

from .examination import examine
from .row import Row, Scale
from .scenarios import FAILING, GROWTH, Right, Scenario, begun, right
from .seam import Unsynced, Watched, installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NUMBERS = {"ENOSPC": 6, "EDQUOT": 6, "EIO": 1, "ESTALE": 1}
KINDS = (*NUMBERS, "ENOSPC for good", "EIO for good", "EINTR", "EINTR for good", "short", "nothing", "nothing for good")
HARMLESS = ("EINTR", "short", "nothing")
_ROOM = ("open", "writev", "link", "mkdir")
_FOR_A_LEASE = " for a lease"
_STRIDE = 199  # of the calls, in a quick run


def failing(kind: str, at: int, failed: list[str]) -> Callable[[int, str, tuple[Any, ...]], tuple[Any] | None]:
    """What stands before each call so that call `at` fails in the way of `kind`, and later ones where it is for good.

    failed: gets what each of them was, as `name path`, and what for where it was for a lease.
    """
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
        failed.append(f"{name} {_path(arguments)}{_FOR_A_LEASE if _leasing() else ''}")
        if name == "close":
            os.close(arguments[0])
        code = getattr(errno, way)
        raise OSError(code, os.strerror(code))

    return before


def _path(arguments: tuple[Any, ...]) -> str:
    """The last path of a call, or that of its descriptor."""
    paths = [argument for argument in arguments if isinstance(argument, str)]
    return paths[-1] if paths else os.readlink(f"/proc/self/fd/{arguments[0]}")


def fail_once(scenario: Scenario, before: Path, root: Path, kind: str, at: int, right: Right) -> list[str]:
    """One command whose call `at` fails: what it showed, in words; what must not be begins with `WRONG`.

    before: what the scenario begins with, copied to `root`.
    """
    if before.exists():
        shutil.copytree(before, root)
    promised = set(begun(scenario, root))
    failed: list[str] = []
    watched = Watched(failing(kind, at, failed))
    descriptors = _descriptors()
    shown = []
    with installed(watched):
        try:
            scenario.command(root, lambda *what: promised.update(what))
        except SherlCacheError as error:
            shown.append(f"exit code {error.exit_code}")
            expected = NUMBERS.get(kind.partition(" ")[0], 1)
            if kind in HARMLESS or error.exit_code != expected:
                shown.append(f"WRONG: {kind} ends with exit code {error.exit_code}: {error}")
        except (OSError, RuntimeError) as error:
            shown.append(f"WRONG: not our error: {error!r}")
        else:
            shown.append("went on")
            if kind in NUMBERS and failed and not _spared(failed[0], scenario):
                shown.append(f"WRONG: {kind} was not noticed: {failed[0]}")
    if watched.opened or _left_open(descriptors):
        shown.append("WRONG: a descriptor is left open")
    return [*shown, *examine(scenario, root, right, promised)]


def _spared(call: str, scenario: Scenario) -> bool:
    """Whether a command may go on without it: leases save work only, and what was set aside may stay."""
    name, path = call.split(" ", 1)
    discarded = scenario.damaged and name == "close" and "/sherl/examples/" in path  # a table made to know its digest
    return discarded or path.endswith(_FOR_A_LEASE) or (name == "unlink" and path.endswith(".tmp"))


def _leasing() -> bool:
    """Whether claims or leases made the call that is made now; folders that they sync are also those of others."""
    theirs = {claims.__name__, leases.__name__}
    return any(frame.f_globals.get("__name__") in theirs for frame, _ in traceback.walk_stack(None))


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _left_open(before: int) -> bool:
    """Whether more descriptors are open than before, also after objects that hold one another were collected."""
    if _descriptors() > before:
        gc.collect()
    return _descriptors() > before


def calls(scenario: Scenario, root: Path) -> int:
    """Calls of a whole command."""
    watched = Watched()
    with installed(watched):
        scenario.command(root, lambda *what: None)
    return watched.count


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """One row for each scenario."""
    for number, scenario in enumerate(FAILING):
        place = folder / str(number)
        expected = right(scenario, place / "whole")
        before, counted = place / "before", place / "counted"
        with installed(Unsynced()):
            scenario.begin(before)
            scenario.begin(counted)
        most = calls(scenario, counted)
        shown: Counter[str] = Counter()
        wrong = []
        tried = 0
        for order, kind in enumerate(KINDS):
            # every call fails in some kinds; in all of them where nothing lengthy comes with it
            stride = scale.of(3 if scenario in GROWTH else 1, _STRIDE)
            step = max(stride // len(KINDS), 1)
            for at in range(1 + (order * step + scale.seed) % stride, most + 1, stride):
                root = place / "failing"
                seen = fail_once(scenario, before, root, kind, at, expected)
                shutil.rmtree(root)
                tried += 1
                shown.update(f"{kind}: {what}" for what in seen if not what.startswith("WRONG"))
                wrong += [f"{kind} at call {at}: {what}" for what in seen if what.startswith("WRONG")]
        shutil.rmtree(place)
        yield Row(
            f"failing calls: {scenario.name}",
            "store readable, resume finishes, exit code 6 or 1",
            f"{tried:,} failures over {most} calls and {len(KINDS)} kinds: {len(wrong)} wrong",
            not wrong,
            {"failures": tried, "calls": most, "shown": dict(shown), "wrong": wrong[:20]},
        )
