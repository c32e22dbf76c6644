"""The same work killed right after each of its calls that change the disk, each time in a process of its own.

The processes are forked from a server that has imported everything already.
"""

from __future__ import annotations

import multiprocessing
import signal
from typing import TYPE_CHECKING, Any

from sherl_cache.storage import system

from .seam import LastCall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.context import ForkServerContext
    from pathlib import Path


_IMPORTED = (
    "sherl_cache.storage",
    *("zarr.core.group", "zarr.core.metadata.v3"),  # imported late by storage, when a store is begun
    "pandas",  # imported late by pyarrow, where it is installed
    *("benchmarks.storage.small", "benchmarks.storage.producer"),
)


def processes() -> ForkServerContext:
    """Where writers are started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context


def killed_after_each_call(
    work: Callable[[Path], object], folder: Path, *, begin: Callable[[Path], object] = lambda root: None, step: int = 1
) -> Iterator[Path]:
    """`work(root)` with another root below `folder` for each of its calls, killed after that one: those roots.

    Ends with the first that is not killed, which must have ended well. work: a function that can be pickled, with
    what it is bound to. begin: called with each root first, in this process. step: every how many calls.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = step
    while True:
        root = folder / str(number)
        begin(root)
        process = processes().Process(target=_until, args=(number, work, root))
        process.start()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            break
        yield root
        number += step
    if process.exitcode != 0:
        raise RuntimeError(f"{work} on {root} ended with {process.exitcode}, {number} calls were to be made")


def _until(number: int, work: Callable[[Path], Any], root: Path) -> None:
    system.system = LastCall(number)
    work(root)
