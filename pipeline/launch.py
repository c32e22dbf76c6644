"""Who started this process beside which others: torchrun, or srun of SLURM. Nothing is guessed that neither says."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..storage.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TORCHRUN: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PORTS: Final = (20_000, 30_000)
"""Where a port is derived from the number of a SLURM step: below those that systems hand out by themselves."""


@dataclass(frozen=True)
class Launch:
    """One of several processes that train together."""

    rank: int
    count: int
    local_rank: int
    """Number of this process on its machine: of the GPU that it takes."""
    address: str
    port: int
    """Where rank 0, or the launcher, can be met."""
    attempt: str = ""
    """Tells a start from those before it that met at the same place."""
    hosted: bool = False
    """Whether the launcher keeps the meeting place; else rank 0 does."""

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.count}"

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Launch | None:
        """None for a process that was started alone. Raises UsageError where the environment is half set."""
        if "WORLD_SIZE" in environment or "RANK" in environment:
            found = _of_torchrun(environment)
        elif "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
            found = _of_slurm(environment)
        else:  # a batch script itself has SLURM_NTASKS too, and is one process
            return None
        if not 0 <= found.rank < found.count:
            raise UsageError(f"{found}: ranks are numbered from 0; the launcher's variables do not fit each other")
        return None if found.count == 1 else found


def _of_torchrun(environment: Mapping[str, str]) -> Launch:
    missing = [name for name in _TORCHRUN if not environment.get(name)]
    if environment.get("WORLD_SIZE") == "1":
        return Launch(0, 1, 0, "", 0)
    if missing:
        raise UsageError(
            f"{', '.join(missing)} is not set, and other variables of torchrun are; start with torchrun, or unset "
            f"{', '.join(name for name in _TORCHRUN if name not in missing)}"
        )
    rank, count, local, port = (
        _number(environment, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    )
    attempt = f"{environment.get('TORCHELASTIC_RUN_ID', '')}/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    hosted = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Launch(rank, count, local, environment["MASTER_ADDR"], port, attempt, hosted)


def _of_slurm(environment: Mapping[str, str]) -> Launch:
    """A task of a step. The place to meet is MASTER_ADDR and MASTER_PORT where they are set; else the step's first node,
    and a port by the numbers of job and step, which every task computes alike.
    """
    count = _number(environment, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS")
    if count == 1:
        return Launch(0, 1, 0, "", 0)
    rank, local = (_number(environment, name) for name in ("SLURM_PROCID", "SLURM_LOCALID"))
    job, step = (environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    address = environment.get("MASTER_ADDR") or _first_node(environment)
    if environment.get("MASTER_PORT"):
        port = _number(environment, "MASTER_PORT")
    else:
        low, high = _PORTS
        port = low + (_number(environment, "SLURM_JOB_ID") * 31 + _number(environment, "SLURM_STEP_ID")) % (high - low)
    return Launch(rank, count, local, address, port, f"slurm/{job}.{step}")


def _first_node(environment: Mapping[str, str]) -> str:
    if environment.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""
    name = first_of_nodes(nodes)
    if not name:
        raise UsageError("SLURM does not say on which nodes this step runs; set MASTER_ADDR to that of rank 0")
    return name


def first_of_nodes(nodes: str) -> str:
    """The first name of a SLURM node list: `gpu[03-05,9],login` begins with gpu03."""
    name = ""
    for text, numbers in re.findall(r"([^,\[\]]+)|\[([^\]]*)\]", re.split(r",(?![^\[]*\])", nodes)[0]):
        name += text or re.split(r"[-,]", numbers)[0]
    return name


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except (KeyError, ValueError):
        raise UsageError(f"{name} is {environment.get(name)!r} in the environment, where a number is needed") from None
