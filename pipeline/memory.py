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
