"""A run told to trackers (`train --report-to`): they are fed from metrics.jsonl, which stays the truth.

A run that goes on, or that was begun without trackers, tells them what they lack and nothing twice. A tracker that fails is
left out with a warning: training does not stop for it.
"""

from __future__ import annotations

import pkgutil
import sys
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..storage.errors import UsageError
from ..storage.nearest import did_you_mean
from ..storage.printable import printable
from . import trackers
from .redaction import without_secrets
from .trackers.contract import Start, Tracker, flat, points

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .run import Run


def tracker_names() -> tuple[str, ...]:
    """Names of the trackers, sorted, without importing any."""
    found = (item.name for item in pkgutil.iter_modules(trackers.__path__))
    return tuple(sorted(name for name in found if name != "contract"))


def chosen_trackers(report_to: Sequence[str]) -> tuple[str, ...]:
    """Trackers by the words of --report-to, each a name or several with commas between. Nothing is imported.

    Raises UsageError for a name that is none, and for one whose package is not installed.
    """
    wanted = list(dict.fromkeys(name.strip() for word in report_to for name in word.split(",") if name.strip()))
    known = tracker_names()
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"--report-to {name}: no such tracker{did_you_mean(name, known)}; there are {', '.join(known)}"
            )
        package = import_module(f".{name}", trackers.__name__).PACKAGE
        spec = find_spec(package)
        if spec is None or spec.origin is None:  # a folder of that name here is no package
            raise UsageError(
                f"--report-to {name}: the package {package} is not installed; pip install 'sherl-cache[{name}]' installs it"
            )
    return tuple(wanted)


@contextmanager
def reporting(names: Sequence[str], run: Run | None, settings: Mapping[str, Any]) -> Iterator[None]:
    """While inside, what `run` logs is told to these trackers, after what its metrics.jsonl holds; a run that logs
    nothing more is told at the end. run: None on a rank that writes nothing.
    """
    if not names or run is None:
        yield
        return
    reports = Reports(names, run, Start(run.root, flat(settings)))
    run.listener = reports.tell
    finished = False
    try:
        yield
        finished = True
    finally:
        run.listener = None
        if finished:
            reports.catch_up()
        reports.close(finished)


class Reports:
    """The trackers of one run, opened when there is something to tell: by then the run's folder stands where it goes on."""

    def __init__(self, names: Sequence[str], run: Run, start: Start) -> None:
        self._names, self._run, self._start = names, run, start
        self._open: dict[str, Tracker] | None = None
        self._held: dict[tuple[str, str], int] = {}

    def tell(self, record: Mapping[str, Any]) -> None:
        """One record, which stands in metrics.jsonl already."""
        if self._open is None:
            self.catch_up()
        else:
            self._log(record)

    def catch_up(self) -> None:
        """Open the trackers, where they are not, and tell them what metrics.jsonl holds and they do not."""
        if self._open is not None:
            return
        self._open = {}
        for name in self._names:
            self._guarded(name, partial(self._begin, name))
        for record in self._run.metrics():
            self._log(record)
        for name in list(self._open):
            self._guarded(name, self._open[name].caught_up)

    def close(self, finished: bool) -> None:
        for name, tracker in list((self._open or {}).items()):
            self._guarded(name, partial(tracker.close, finished))
        self._open = {}

    def _begin(self, name: str) -> None:
        tracker: Tracker = import_module(f".{name}", trackers.__name__).open_tracker(self._start)
        for group in ("train", "validation"):
            self._held[name, group] = tracker.holds(group)
        assert self._open is not None
        self._open[name] = tracker

    def _log(self, record: Mapping[str, Any]) -> None:
        group, step, values = points(record)
        for name, tracker in list((self._open or {}).items()):
            if values and step > self._held[name, group]:
                self._guarded(name, partial(tracker.log, step, values))

    def _guarded(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker's package raises, the run is worth more
            (self._open or {}).pop(name, None)
            said = without_secrets(f"{type(error).__name__}: {error}".strip())
            text = f"warning: {name} is told nothing from here on ({said}); metrics.jsonl is whole"
            print(printable(text), file=sys.stderr)
