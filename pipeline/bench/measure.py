"""Clock and memory of the steps of a way, in this process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..memory import peak_memory_bytes
from .document import Measured

if TYPE_CHECKING:
    import torch

    from .way import Way


def measure(way: Way, steps: int, device: torch.device, imports_bytes: int) -> Measured:
    """Take `steps` steps, of which the first warms up.

    imports_bytes: peak memory of this process when everything was imported and nothing loaded.
    """
    before, from_disk = way.norms(), _device_bytes()
    seconds, waits, losses, made = [], [], [], 0.0
    for number in range(steps):
        waited = way.waited() if way.waited else 0.0
        begun = time.perf_counter()
        step = next(way.steps)
        ready = time.perf_counter()
        losses.append(step())
        synchronize(device)
        ended = time.perf_counter()
        if not way.waited:
            made += ready - begun
        if number:
            seconds.append(ended - (begun if way.waited else ready))
            waits.append(way.waited() - waited if way.waited else 0.0)
    read = _device_bytes()
    memory, net = peak(device, imports_bytes)
    after = way.norms()
    return Measured(
        seconds=seconds,
        wait_seconds=waits,
        batch_seconds=made,
        losses=losses,
        memory=memory,
        net_bytes=net,
        imports_bytes=imports_bytes,
        held_bytes=way.held_bytes,
        trained_parameters=sum(parameter.numel() for parameter in way.trained),
        trained_tensors=len(before),
        changed_tensors=sum(one != other for one, other in zip(before, after, strict=True)),
        store_bytes=None if way.store_bytes is None else way.store_bytes(),
        device_bytes=None if read is None or from_disk is None else read - from_disk,
        facts={**way.facts, **machine(device)},
    )


def peak(device: torch.device, imports_bytes: int) -> tuple[Literal["resident", "allocator"], int]:
    """Where the figure comes from, and peak bytes: above the imports' own, or those of a GPU's allocator."""
    import torch

    if device.type == "cuda":
        return "allocator", torch.cuda.max_memory_allocated(device)
    return "resident", peak_memory_bytes() - imports_bytes


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def machine(device: torch.device) -> dict[str, str]:
    """What computes here: what a run records of it, with the device's number and the processor's own name."""
    from ...stages.environment import machine as recorded

    known = {name.replace("_", " "): value for name, value in recorded(device).items()} | {"device": str(device)}
    return known if device.type == "cuda" else {**known, "device name": _processor()}


def _processor() -> str:
    """Name of the processor, where the system says it."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _device_bytes() -> int | None:
    """Bytes that disks gave this process so far; None where the system does not say."""
    try:
        lines = Path("/proc/self/io").read_text("ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)
