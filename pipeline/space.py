"""What a disk still takes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def free_bytes(root: Path) -> int | None:
    """Bytes that this user may still write where `root` lies (or its nearest folder that exists).

    The file system's own figure, which counts a quota where the file system reports quotas this way; None where it
    reports no size at all.
    """
    folder = root.absolute()
    while not folder.exists():
        folder = folder.parent
    figures = os.statvfs(folder)
    return int(figures.f_bavail * figures.f_frsize) if figures.f_blocks else None
