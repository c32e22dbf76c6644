"""Shares of an array job: `3/16`, or `slurm`, which reads the share from what SLURM tells a task."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..storage.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHARE: Final = re.compile(r"(\d{1,9})/(\d{1,9})")


@dataclass(frozen=True)
class Part:
    """Share `number`, counted from 1, of `count` shares of a store's units."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_part(text: str, environment: Mapping[str, str] = os.environ) -> Part:
    """The share that `--part` names. Raises UsageError, also where SLURM's variables tell of no share."""
    if text == "slurm":
        return _slurm(environment)
    found = _SHARE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"--part {text!r}: give a share as in 3/16, or slurm in a task of an array job")
    part = Part(int(found[1]), int(found[2]))
    if not 1 <= part.number <= part.count:
        raise UsageError(
            f"--part {text}: shares are counted from 1, so the last of {part.count} is {part.count}/{part.count}"
        )
    return part


def _slurm(environment: Mapping[str, str]) -> Part:
    """From the number of this task in its array, and of this process in its task."""
    names = ("ID", "MIN", "MAX", "COUNT")
    try:
        task, least, most, count = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in names)
    except (KeyError, ValueError):
        raise UsageError(
            "--part slurm: SLURM_ARRAY_TASK_ID and its like are not set here; give a share as in 3/16"
        ) from None
    step = (most - least) // (count - 1) if count > 1 else 1
    if least + step * (count - 1) != most or (task - least) % max(step, 1) or step < 1:
        raise UsageError(
            f"--part slurm: the tasks of this array ({count} from {least} to {most}) are not evenly spaced, so their shares "
            'cannot be told; give a share as in --part "$SLURM_ARRAY_TASK_ID/16"'
        )
    process, processes = int(environment.get("SLURM_PROCID", "0")), int(environment.get("SLURM_NTASKS", "1"))
    return Part((task - least) // step * processes + process + 1, count * processes)
