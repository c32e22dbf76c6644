"""What every topic of this benchmark gets and gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Scale:
    """How much is measured. quick: the whole benchmark in about a minute; seed: of every random choice."""

    quick: bool
    seed: int = 0

    def of(self, full: int, quick: int) -> int:
        """A count: `quick` of it in a quick run."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Row:
    """One promise: its goal in words, what was measured, whether it holds (None: nothing to hold, a peer say).

    details: every number behind it, for `--json`.
    """

    name: str
    goal: str
    measured: str
    holds: bool | None
    details: dict[str, Any] = field(default_factory=dict)


class Topic(Protocol):
    """A module of this package."""

    def rows(self, scale: Scale, folder: Path) -> Iterator[Row]:
        """Measure; `folder` is empty, on the disk to be measured, and removed afterwards."""
        ...
