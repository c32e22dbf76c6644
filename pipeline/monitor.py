"""How far an extraction is, seen from the store alone: receipts say what is done, leases who is at work."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from ..storage import leases, ledger
from ..storage.place import open_files, parse_place
from ..storage.printable import printable
from .progress import duration, pause

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..storage.leases import Holder
    from ..storage.place import Place
    from ..storage.readers.contract import Files

LOOK_SECONDS: Final = 2.0
"""Between two looks at the store; lines in a log come more rarely."""
QUIET_SECONDS: Final = leases.LEASE_SECONDS
_SHOWN: Final = 4


@dataclass(frozen=True)
class Progress:
    """A store at one time: units and their examples, done and in all, and who holds which unit."""

    units: int
    units_done: int
    examples: int
    examples_done: int
    at_work: list[Holder]
    finished: bool
    """Whether the manifest of all that is planned is there."""

    def to_json(self) -> dict[str, Any]:
        """What `info --json` says of it."""
        at_work = [asdict(holder) | {"host": holder.host, "pid": holder.pid} for holder in self.at_work]
        return {"units": {"done": self.units_done, "all": self.units}, "at_work": at_work}


def look(files: Files) -> Progress:
    """The progress of a store, from the names of its receipts: one look into a folder, whatever the number of units."""
    chain = ledger.read_chain(files)
    names = {name.removesuffix(".json") for name in files.names("sherl/receipts")}
    units = chain.head.units()
    done = {unit for unit, pieces in chain.pieces.items() if all(piece.name in names for piece in pieces)}
    return Progress(
        units=len(units),
        units_done=len(done),
        examples=sum(unit.examples for unit in units),
        examples_done=sum(unit.examples for unit in units if unit.name in done),
        at_work=[holder for holder in leases.holders(files) if holder.unit not in done],
        finished=ledger.newest_manifest(files, chain.digests[-1]) is not None,
    )


class Watch:
    """One extraction, looked at again and again; rates are of the time since the first look."""

    def __init__(self, files: Files, clock: Callable[[], float] = time.monotonic) -> None:
        self._files, self._clock = files, clock
        self._first: tuple[float, int] | None = None
        self._beats: dict[str, tuple[object, float]] = {}
        """By unit, what was last read of its lease, and since when it reads like this."""

    def look(self) -> tuple[Progress, str]:
        """The progress now, and a line that says it: units, examples, rate, time left, who is at work on what."""
        now, seen = self._clock(), look(self._files)
        self._first = self._first or (now, seen.examples_done)
        since, before = self._first
        share = 100 * seen.examples_done / max(seen.examples, 1)
        parts = [
            f"{seen.units_done:,}/{seen.units:,} units",
            f"{seen.examples_done:,}/{seen.examples:,} examples ({share:.0f} %)",
        ]
        rate = (seen.examples_done - before) / (now - since) if now > since else 0.0
        if rate > 0:
            parts.append(f"{rate:,.1f} examples/s")
            if seen.examples_done < seen.examples:
                parts.append(f"{duration((seen.examples - seen.examples_done) / rate)} left")
        parts.append(self._workers(seen.at_work, now))
        return seen, printable(", ".join(parts))

    def _workers(self, at_work: list[Holder], now: float) -> str:
        shown = []
        for holder in at_work:
            known = self._beats.get(holder.unit)
            if known is None or known[0] != holder:
                known = self._beats[holder.unit] = holder, now
            quiet = now - known[1]
            shown.append(
                f"{holder.unit} on {holder.host}:{holder.pid}"
                + (f" (no sign of life for {duration(quiet)})" if quiet > QUIET_SECONDS else "")
            )
        if not shown:
            return "nobody is at work"
        return f"{len(shown)} at work: {'; '.join(shown[:_SHOWN])}{'; ...' if len(shown) > _SHOWN else ''}"


def watch(root: str | Path | Place, every: float = LOOK_SECONDS) -> None:
    """Say on stderr how an extraction goes until it is finished: one line that changes on a terminal, lines in a log.

    Raises StoreMissing where there is no store.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console, watching = Console(stderr=True), Watch(open_files(parse_place(root)))
    begun = said = time.monotonic()
    seen, line = watching.look()
    if console.is_terminal:
        with Live(Text(line), console=console, transient=True) as live:
            while not seen.finished:
                time.sleep(every)
                seen, line = watching.look()
                live.update(Text(line))
    print(line, file=sys.stderr, flush=True)
    while not seen.finished:
        time.sleep(every)
        seen, line = watching.look()
        if seen.finished or time.monotonic() - said >= pause(said - begun):
            said = time.monotonic()
            print(line, file=sys.stderr, flush=True)
