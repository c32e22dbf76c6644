"""Other ways to keep the same examples, against ours: `comparison.py` measures, one file a peer, `job.py` is what each is given.

A peer's own environment imports this package too, and holds neither sherl-cache nor what the comparison needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..row import Row, Scale


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """The topic's rows, as `comparison.rows` gives them."""
    from .comparison import rows

    return rows(scale, folder)
