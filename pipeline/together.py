"""Processes that train together, found and joined: the ranks of a run, each with its device and an eye on the others."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist

from ..stages.device import choose_device
from ..stages.ranks import Ranks
from ..storage.errors import Interrupted, RankLost, SherlCacheError, UsageError
from . import stopping
from .launch import Launch
from .watch import Watch, beat_key, introduction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch._C._distributed_c10d import Store

JOIN_SECONDS: Final = 300.0
"""How long those that are there wait for the others."""
_CALL: Final = timedelta(seconds=5)
_MESSAGE: Final = timedelta(hours=12)
"""A message may wait as long as rank 0 prepares a fusion; ranks that are gone are found by the watch."""


@contextmanager
def together(device: str) -> Iterator[Ranks]:
    """The ranks of this run, or this process alone; `device` is the recipe's, of which each rank takes its own.

    Raises UsageError where they cannot be joined, RankLost where one does not come.
    """
    launch = Launch.of()
    if launch is None:
        yield Ranks(device=choose_device(device))
        return
    own = rank_device(device, launch)
    store = _meet(launch)
    members = _members(launch, store, own)
    watch = Watch(launch, lambda: _store(launch, keep=False))
    watch.start(members)
    try:
        _require_own_gpus(members)
        group = dist.PrefixStore("group", store)  # type: ignore[attr-defined]
        backend, bound = ("nccl", own) if own.type == "cuda" else ("gloo", None)
        with _naming(watch):
            dist.init_process_group(
                backend, store=group, rank=launch.rank, world_size=launch.count, timeout=_MESSAGE, device_id=bound
            )
        yield Ranks(launch.rank, launch.count, own, watch.reason)
    except BaseException as error:
        watch.leave(store, *_how(error))
        raise
    watch.leave(store, 0, "")
    dist.destroy_process_group()


def rank_device(name: str, launch: Launch) -> torch.device:
    """The device of a rank: the GPU of its number on its machine, or the only one that it sees; else the CPU. Raises
    UsageError.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise UsageError(f"--device {name}: {launch.count} ranks take a GPU each, or the CPU; use auto, cuda or cpu")
    seen = torch.cuda.device_count()
    number = launch.local_rank if seen > 1 else 0
    if number >= seen:
        raise UsageError(
            f"{launch} is number {number} on its machine, where {seen} GPUs are seen; start at most {seen} ranks there, or "
            "use --device cpu"
        )
    found = choose_device(f"cuda:{number}")
    torch.cuda.set_device(found)
    return found


def _store(launch: Launch, *, keep: bool) -> Store:
    place = launch.address, launch.port, None, keep, _CALL
    store = dist.TCPStore(*place, wait_for_workers=False)  # type: ignore[attr-defined]
    found: Store = dist.PrefixStore(f"sherl-cache/{launch.attempt}", store)  # type: ignore[attr-defined]
    return found


def _meet(launch: Launch) -> Store:
    keep = launch.rank == 0 and not launch.hosted
    until = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            return _store(launch, keep=keep)
        except RuntimeError as error:
            if keep:
                raise UsageError(
                    f"rank 0 cannot keep the meeting place at port {launch.port} ({str(error).splitlines()[0]}); set "
                    "MASTER_PORT to a free one, for all ranks the same"
                ) from None
            if time.monotonic() > until:
                raise RankLost(
                    f"{launch} finds nobody at {launch.address}:{launch.port}, where rank 0 or the launcher should be"
                ) from None
            time.sleep(0.2)


def _members(launch: Launch, store: Store, device: torch.device) -> dict[int, Any]:
    """What every rank said of itself."""
    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
    store.set(beat_key(launch.rank), "0")
    store.set(f"member/{launch.rank}", json.dumps({**introduction(), "gpu": gpu}))
    names = {rank: f"member/{rank}" for rank in range(launch.count)}
    until = time.monotonic() + JOIN_SECONDS
    while not store.check(list(names.values())):
        if time.monotonic() > until:
            absent = [str(rank) for rank, name in names.items() if not store.check([name])]
            raise RankLost(
                f"{launch} waited {JOIN_SECONDS:.0f} s for rank {', '.join(absent)}, which did not come; are all of them "
                "started, and can they reach each other?"
            )
        time.sleep(0.05)
    return {rank: json.loads(store.get(name)) for rank, name in names.items()}


def _require_own_gpus(members: dict[int, Any]) -> None:
    taken: dict[str, int] = {}
    for rank, said in members.items():
        if said["gpu"] is not None and taken.setdefault(said["gpu"], rank) != rank:
            raise UsageError(
                f"ranks {taken[said['gpu']]} and {rank} would share one GPU of {said['host']}; start one rank a GPU, or use "
                "--device cpu"
            )


@contextmanager
def _naming(watch: Watch) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise watch.reason(error) from error


def _how(error: BaseException) -> tuple[int, str]:
    """Exit code and reason of a rank that ends by an error, for the others; 0 where all of them agreed to end."""
    asked = stopping.asked()
    if isinstance(error, KeyboardInterrupt):
        return (130, "by Ctrl-C") if asked is None else (Interrupted.exit_code, f"by {asked.name}")
    if isinstance(error, SherlCacheError):
        agreed = isinstance(error, Interrupted) and not isinstance(error, RankLost)
        return (0, "") if agreed else (error.exit_code, str(error))
    return 1, f"{type(error).__name__}: {error}"
