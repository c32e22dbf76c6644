"""One unit as one task: a plain function of small arguments, the same in a test, in a thread or on a worker far away.

What is large is loaded by the worker itself, once, and kept for the units that follow.
"""

from __future__ import annotations

import errno
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distributed import get_worker

from ...storage.errors import OutOfMemory, OutOfSpace, SherlCacheError
from ..walltime import WallTime

if TYPE_CHECKING:
    from ...stages.extractor import Extractor
    from ...stages.prepare import ExtractSettings
    from ...storage import Unit


@dataclass(frozen=True)
class UnitJob:
    """What a worker must know to run any unit of one extraction."""

    root: str
    """Folder of the store, the same on every machine."""
    plan: str
    """Digest of the plan that is carried out."""
    settings: ExtractSettings
    device: str
    threads: int | None
    """Of a forward on a CPU; None: as many as the worker was given."""
    ends_at: float | None = None
    """Seconds since the epoch; None: when the worker's own job ends."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    kind: `done`: committed; `there`: another had committed it; `late`: not begun for want of wall time; `failed`: the unit
    met an error; `unfit`: the worker cannot run any unit.
    """

    unit: str
    kind: Literal["done", "there", "late", "failed", "unfit"]
    worker: str = ""
    seconds: float = 0.0
    error: SherlCacheError | None = None
    differs: tuple[str, ...] = ()
    """What of the worker's environment is not as where the store was begun."""


def run_unit(job: UnitJob, name: str) -> Outcome:
    """Run a unit and commit it, unless it is committed. Raises nothing: what goes wrong is in the outcome."""
    worker, threads = _here()
    try:
        extractor, wall_time = _kept(job, threads)
    except Exception as error:
        return Outcome(name, "unfit", worker, error=_ours(error))
    unit = extractor.units[name]
    begun = time.monotonic()

    def begin(unit: Unit) -> bool:
        nonlocal begun
        begun = time.monotonic()
        return wall_time.fits(unit.examples)

    try:
        ending = extractor.extract(unit, begin)
    except Exception as error:
        return Outcome(name, "failed", worker, error=_ours(error))
    seconds = time.monotonic() - begun
    if ending == "done":
        wall_time.took(unit.examples, seconds)
    return Outcome(name, "late" if ending == "refused" else ending, worker, seconds, differs=extractor.differs)


def warm_up(job: UnitJob) -> str:
    """Load what the units of a job need; an empty string, or why this worker cannot."""
    try:
        _kept(job, _here()[1])
    except Exception as error:
        return str(_ours(error))
    return ""


def forget() -> None:
    """Free what was kept for a job; a unit that runs keeps what it has."""
    _keeping.clear()  # without the lock: a worker's event loop calls this, and must not wait for a model to be loaded


def portable(settings: ExtractSettings) -> ExtractSettings:
    """The same with absolute paths: a worker may stand in another folder."""
    validation = None if settings.validation is None else _absolute(settings.validation)
    return replace(settings, model=_absolute(settings.model), data=_absolute(settings.data), validation=validation)


_lock = threading.Lock()
_keeping: dict[UnitJob, tuple[Extractor, WallTime]] = {}


def _kept(job: UnitJob, threads: int | None) -> tuple[Extractor, WallTime]:
    with _lock:
        if job not in _keeping:
            from ...stages.extractor import Extractor

            _keeping.clear()  # before the next is loaded: there may be no room for two
            extractor = Extractor(Path(job.root), job.plan, job.settings, job.device, job.threads or threads)
            wall_time = WallTime.of(None) if job.ends_at is None else WallTime(job.ends_at)
            _keeping[job] = extractor, wall_time
        return _keeping[job]


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def _here() -> tuple[str, int | None]:
    """Address and threads of the worker that runs this; none where none does."""
    try:
        worker = get_worker()
    except ValueError:
        return "", None
    return str(worker.address), int(worker.state.nthreads)


def _ours(error: Exception) -> SherlCacheError:
    """An error that can travel: one of ours, with no more to it than its words."""
    if isinstance(error, SherlCacheError):
        return type(error)(str(error))
    told = f"{type(error).__name__}: {error}"
    if notes := getattr(error, "__notes__", None):
        told = f"{', '.join(notes)}: {told}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSpace(told)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemory(told)
    return SherlCacheError(told)
