"""Peak resident memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """The high-water mark of resident memory since this process began, in bytes.

    VmHWM where Linux offers it: `ru_maxrss` is inherited from the parent across fork and would show the shell that
    started us.
    """
    try:
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory_bytes() -> int | None:
    """What may still be taken, the page cache included: what Linux calls available, and no more than the limits of this
    process's control groups; None where neither is known.
    """
    known = []
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                known.append(int(line.split()[1]) * 1024)
        for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                known += _limits(Path("/sys/fs/cgroup"), path, "memory.max")
            elif "memory" in controllers.split(","):
                known += _limits(Path("/sys/fs/cgroup/memory"), path, "memory.limit_in_bytes")
    except (OSError, ValueError):
        pass
    return min(known, default=None)


def _limits(root: Path, path: str, name: str) -> list[int]:
    """Limits of a control group and of those that it is in."""
    found = []
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        if folder.is_relative_to(root) and (folder / name).is_file():
            said = (folder / name).read_text("ascii").strip()
            found += [int(said)] if said.isdecimal() else []
    return found
