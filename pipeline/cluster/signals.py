"""Loaded by the worker processes of this machine (dask's `preload`): what a terminal or a batch system tells the whole group is
for the driver to heed. It ends its workers; where it dies, they end by themselves.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Worker


def dask_setup(worker: Worker) -> None:
    """Ignore Ctrl-C and SIGUSR1. SIGTERM stays: dask's nanny sends it."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        with suppress(ValueError):  # not the main thread
            signal.signal(number, signal.SIG_IGN)
