"""From measured rates to seconds, and from seconds to a choice. Pure: nothing is measured here.

Caching pays once what it saves in each pass over the data exceeds what extraction cost. Loading the model and tokenising are
left out, since both ways do that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from ...storage.errors import InvalidInput

Way = Literal["cache", "recompute", "neither"]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What was measured, each a speed above 0; infinite where something takes no time."""

    forward: float
    """Input tokens a second of the early layers, in batches as `extract` makes them."""
    encode: float
    """Stored bytes a second, from states to stored numbers."""
    commit: float
    """Stored bytes a second, into checksums and digests."""
    files: float
    """Small files a second, written durably, where the store would lie."""
    write: float
    """Bytes a second, written durably, where the store would lie."""
    cold: float
    """Bytes a second that the disk gives of what is not in memory."""
    warm: float
    """Bytes a second that the reader gives of what is in the page cache."""
    cached_step: float
    """Training examples a second, taps in memory."""
    live_step: float
    """Training examples a second where the early layers run in every step."""
    cached_validation: float
    """Validation examples a second, taps in memory."""
    live_validation: float
    """Validation examples a second where the early layers run."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise InvalidInput(f"rate {field.name} is {value}: a measured speed above 0 is needed")


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much there is to do."""

    tokens: int
    """Input tokens of all splits."""
    store_bytes: int
    """All that extraction writes."""
    unit_files: int
    """Files that units are committed in."""
    other_files: int
    """Those before the first and behind the last of them."""
    units: int
    train_examples: int
    train_bytes: int
    """Stored bytes of a pass over the training split, of the taps that the recipe reads."""
    validation_examples: int
    validation_bytes: int
    block_bytes: int
    """Of these, what is read before the first step can be taken."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it is done."""

    contention: float
    """Seconds that a second of work beside the main thread takes from it: 0 where a core is idle."""
    ahead: float
    """Share, 0 to 1, of what is read that is read while batches are consumed; the rest is waited for."""
    stays: bool
    """Whether a run keeps all that it reads in memory after its first pass."""
    page_cache: bool
    """Whether the page cache keeps what was read once, for later passes and runs."""


@dataclass(frozen=True)
class Costs:
    """Seconds of both ways. A cached epoch includes its reading and both include the validation."""

    extract: float
    first_epoch: float
    """Of the first run: what it reads is not in memory."""
    first_epoch_again: float
    """Of the runs after it."""
    epoch: float
    """Every later epoch from the store."""
    live_epoch: float

    def cached(self, epochs: int, runs: int) -> float:
        """Seconds to extract once, and to train so many runs of so many epochs."""
        first = self.first_epoch + (runs - 1) * self.first_epoch_again
        return self.extract + first + runs * (epochs - 1) * self.epoch

    def live(self, epochs: int, runs: int) -> float:
        """The same with the early layers run in every step."""
        return runs * epochs * self.live_epoch

    def break_even_epochs(self, runs: int) -> int | None:
        """The fewest epochs a run with which caching is no slower; None where no number is enough."""
        if self.cached(1, runs) <= self.live(1, runs):
            return 1
        saved = runs * (self.live_epoch - self.epoch)
        if saved <= 0:
            return None
        later = (self.cached(1, runs) - self.live(1, runs)) / saved
        return 1 + math.ceil(later) if math.isfinite(later) else None


@dataclass(frozen=True)
class Choice:
    """What to do, and why in a few words."""

    way: Way
    reason: str


def predict(rates: Rates, work: Work, machine: Machine) -> Costs:
    """Seconds of both ways.

    Encoding, committing and reading run beside the main thread: they cost it what they take of its cores, and it waits where
    they are slower. Nothing is left to run beside the commit of the last unit, nor beside what a store begins and ends with.
    """
    units, contention = max(work.units, 1), machine.contention
    encode, digest = work.store_bytes / rates.encode, work.store_bytes / rates.commit
    commit = digest + work.store_bytes / rates.write + work.unit_files / rates.files
    forward = work.tokens / rates.forward + contention * (encode + digest)
    extract = max(forward, encode, commit * (1 - 1 / units)) + commit / units + work.other_files / rates.files

    train = work.train_examples / rates.cached_step
    validation = work.validation_examples / rates.cached_validation
    warm, cold = rates.warm, min(rates.cold, rates.warm)

    def epoch(rate: float) -> float:
        """With everything read at a rate."""
        return _read_beside(train, work.train_bytes, work.block_bytes, rate, rates.warm, machine) + _read_beside(
            validation, work.validation_bytes, work.block_bytes, rate, rates.warm, machine
        )

    again = warm if machine.page_cache else cold
    return Costs(
        extract=extract,
        first_epoch=epoch(cold),
        first_epoch_again=epoch(again),
        epoch=train + validation if machine.stays else epoch(again),
        live_epoch=work.train_examples / rates.live_step + work.validation_examples / rates.live_validation,
    )


def choose(costs: Costs, epochs: int, runs: int, *, room: bool, live_fits: bool) -> Choice:
    """The way that takes less time, of those that are possible.

    room: whether the store fits the disk; live_fits: whether the whole model fits the memory beside what trains.
    """
    if not room and not live_fits:
        return Choice("neither", "the store does not fit the disk, nor live training the memory")
    if not room:
        return Choice("recompute", "the store does not fit the disk")
    if not live_fits:
        return Choice("cache", "live training does not fit the memory")
    cached, live = costs.cached(epochs, runs), costs.live(epochs, runs)
    if cached < live:
        return Choice("cache", f"{live / cached:.1f} times as fast as recomputing")
    pays = costs.break_even_epochs(runs)
    slower = f"caching would take {cached / live:.1f} times as long"
    if pays is None:
        return Choice("recompute", f"{slower}, and an epoch from the store is no faster than a live one")
    return Choice("recompute", f"{slower}; it would pay from {pays:,} epochs on")


def _read_beside(main: float, count: int, block: int, rate: float, warm: float, machine: Machine) -> float:
    """Seconds of `main` while `count` bytes are read at `rate`."""
    first = min(block, count)
    beside = machine.ahead * (count - first)
    waited = (count - beside) / rate
    return waited + max(main + machine.contention * beside / warm, beside / rate)
