"""Progress on stderr: a live line with rate and time left on a terminal; in a log file plain lines, every few seconds at
first, then every minute.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from ..storage.notebook import bytes_text
from ..storage.printable import printable
from . import stopping

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG_SECONDS = 5.0
LONGEST_LOG_SECONDS = 60.0
LOG_SHARE = 0.05


def pause(elapsed: float) -> float:
    """Seconds until the next line of a log, `elapsed` seconds after the first: an hour's lines are fewer than 150."""
    return min(max(LOG_SECONDS, LOG_SHARE * elapsed), LONGEST_LOG_SECONDS)


class Progress(Protocol):
    """What a long job reports to."""

    def advance(self, amount: int, note: str = "") -> None:
        """`amount` more is done; `note` is shown beside it."""
        ...


@contextmanager
def progress(label: str, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
    """Show `label` going from `done` to `total` (counted in `unit`), in the way that fits where stderr goes.

    Whoever advances it is told there that an end was asked for, by `Stopped`, unless within `stopping.deferred`.
    """
    if sys.stderr.isatty():
        with _terminal(label, total, unit, done) as bar:
            yield Heeding(bar)
    else:
        log = LogLines(label, total, unit, done)
        yield Heeding(log)
        log.close()


class Heeding:
    """Progress that raises `Stopped` where an end was asked for and a library took the signal's own for a failure."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar

    def advance(self, amount: int, note: str = "") -> None:
        self._bar.advance(amount, note)
        stopping.heed()


class LogLines:
    """A line every few seconds, later every minute: place, share, rate, time left."""

    def __init__(self, label: str, total: int, unit: str, done: int) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.at_start = done
        self.note = ""
        self.started = self.said = time.monotonic()
        self._told: tuple[int, str] | None = None

    def advance(self, amount: int, note: str = "") -> None:
        self.done += amount
        self.note = note or self.note
        if time.monotonic() - self.said >= pause(self.said - self.started):
            self._say()

    def close(self) -> None:
        """Say where it ended, once."""
        if self._told != (self.done, self.note):
            self._say()

    def _say(self) -> None:
        self.said = time.monotonic()
        self._told = self.done, self.note
        rate = (self.done - self.at_start) / max(self.said - self.started, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 else float("nan")
        share = 100 * self.done / max(self.total, 1)
        parts = [
            f"{self.label}: {self.done:,}/{self.total:,} {self.unit} ({share:.0f} %)",
            f"{rate:,.1f} {self.unit}/s",
        ]
        if self.done < self.total and left == left:
            parts.append(f"{duration(left)} left")
        print(printable(", ".join([*parts, *([self.note] if self.note else [])])), file=sys.stderr, flush=True)


@contextmanager
def _terminal(label: str, total: int, unit: str, done: int) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}, {task.fields[rate]}/s,"),
        TimeRemainingColumn(),
        TextColumn("left {task.fields[note]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(label, total=total, completed=done, unit=unit, rate="-", note="")
        started, first = time.monotonic(), done

        class Bar:
            def advance(self, amount: int, note: str = "") -> None:
                nonlocal done
                done += amount
                rate = (done - first) / max(time.monotonic() - started, 1e-9)
                display.update(task, advance=amount, rate=f"{rate:,.1f}")
                if note:
                    display.update(task, note=note)

        yield Bar()


def duration(seconds: float) -> str:
    """`3 s`, `2 min 5 s`, `1 h 4 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes in powers of 1024, as people read them: `3.2 GiB`."""
    return bytes_text(count)
