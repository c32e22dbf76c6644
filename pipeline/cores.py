"""Cores of this machine that are this process's to use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that this process may run on, which a batch job or a container may have made fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
