"""Several kinds of work timed in turns, so that a machine that slows down slows all of them alike."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WARM_UP: Final = 1
_LEAST: Final = 2
_TRIMMED: Final = 0.25
"""Share of the times left out at each end, the quickest and the slowest."""


class Timer:
    """One kind of work: each call does a piece of it."""

    def __init__(self, work: Callable[[], tuple[int, int]], warm_up: int = _WARM_UP, least: int = _LEAST) -> None:
        """work: does a piece and tells its amount, in the unit of the rate, and its tokens, by which pieces of different
        lengths are compared; warm_up: pieces that are not counted; least: pieces that are, however long they take.
        """
        self._work, self._warm_up, self.least = work, warm_up, least
        self._taken: list[tuple[float, int, int]] = []

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return sum(seconds for seconds, _, _ in self._taken)

    def take(self) -> None:
        """Time one piece."""
        for _ in range(self._warm_up):
            self._work()
        self._warm_up = 0
        begun = time.perf_counter()
        amount, tokens = self._work()
        self._taken.append((time.perf_counter() - begun, amount, tokens))

    @property
    def rate(self) -> float:
        """Amount a second."""
        taken = sorted(self._taken, key=lambda each: each[0] / max(each[2], 1))
        cut = int(len(taken) * _TRIMMED)
        kept = taken[cut : len(taken) - cut]
        return sum(amount for _, amount, _ in kept) / sum(seconds for seconds, _, _ in kept)


def take_turns(timers: Sequence[Timer], seconds: float) -> None:
    """Each as often as it must; then whichever has had the least time, until `seconds` are over."""
    begun = time.perf_counter()
    for round_ in range(max(timer.least for timer in timers)):
        for timer in timers:
            if round_ < timer.least:
                timer.take()
    while time.perf_counter() - begun < seconds:
        min(timers, key=lambda timer: timer.spent).take()
