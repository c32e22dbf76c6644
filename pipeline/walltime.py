"""The time that a job has left: no unit is begun that it cannot finish.

Every batch system ends a job at its limit. SLURM tells a job when that is (SLURM_JOB_END_TIME, seconds since the epoch);
elsewhere `--time-left` does.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from ..storage.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..storage import Unit

END_VARIABLE: Final = "SLURM_JOB_END_TIME"
MARGIN: Final = 1.5
"""A unit is taken to need so many times what the slowest one so far did, an example."""
RESERVE_SECONDS: Final = 10.0
"""Kept for the last commits and the manifest."""


def seconds_left(text: str) -> float:
    """Seconds of `--time-left`: 3h, 1h30min, 90 s or 1:30:00. Raises UsageError."""
    from .cluster.settings import seconds_of

    try:
        return seconds_of(text)
    except ValueError as error:
        raise UsageError(f"--time-left {text}: {error}") from None


class WallTime:
    """When this job ends, and how long units take here.

    ends_at: in seconds since the epoch; None: nothing ends it.
    """

    def __init__(self, ends_at: float | None) -> None:
        self.ends_at = ends_at
        self.slowest = 0.0
        """Seconds an example, of the slowest unit so far; 0 before the first."""
        self.refused = False
        """Whether a unit was not begun for want of time."""
        self._running: tuple[int, float] | None = None

    @classmethod
    def of(cls, seconds_left: float | None, environment: Mapping[str, str] = os.environ) -> WallTime:
        """From what the user says is left, else from what the batch system says."""
        if seconds_left is not None:
            return cls(time.time() + seconds_left)
        told = environment.get(END_VARIABLE, "")
        return cls(float(told) if told.isascii() and told.isdigit() else None)

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return float("inf") if self.ends_at is None else self.ends_at - time.time()

    @property
    def told(self) -> str:
        """Why the rest was not begun, in words."""
        return f"{max(self.left, 0):.0f} s of wall time are left, too little for another unit"

    def fits(self, examples: int) -> bool:
        """Whether a unit of so many examples can be begun. Before one is measured: while there is any time to work."""
        fits = self.left - RESERVE_SECONDS > MARGIN * self.slowest * examples
        self.refused |= not fits
        return fits

    def took(self, examples: int, seconds: float) -> None:
        """A unit of so many examples took so long."""
        self.slowest = max(self.slowest, seconds / max(examples, 1))

    def begin(self, unit: Unit) -> bool:
        """As `fits`, where units are run one after the other: the one before ends when the next is asked for."""
        self.pause()
        if not self.fits(unit.examples):
            return False
        self._running = unit.examples, time.monotonic()
        return True

    def pause(self) -> None:
        """The unit at work has ended, and none is begun yet."""
        if self._running is not None:
            examples, begun = self._running
            self.took(examples, time.monotonic() - begun)
            self._running = None
