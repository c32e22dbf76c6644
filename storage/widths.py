"""How wide the taps of a stream are: all alike, as layers of a transformer, or each its own, as stages of a network on
pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

Width = int | Mapping[int, int]
"""Of every tap of a stream, or by tap."""


def width_by_tap(width: Width, taps: Sequence[int]) -> dict[int, int]:
    """Width of each of some taps, ascending; 0 of one that is not known."""
    return {tap: width if isinstance(width, int) else width.get(tap, 0) for tap in sorted(taps)}


def width_fields(widths: Mapping[int, int]) -> dict[str, Any]:
    """The fields of a StreamPlan that say which taps it has, and how wide each is."""
    taps = tuple(sorted(widths))
    each = tuple(widths[tap] for tap in taps)
    return {"taps": taps, "width": max(each), "widths": each if len(set(each)) > 1 else None}
