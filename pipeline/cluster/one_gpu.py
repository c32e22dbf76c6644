"""Loaded by the nannies of a job that has several workers and GPUs (`--preload-nanny`): one GPU each, by the worker's number."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Nanny


def dask_setup(nanny: Nanny) -> None:
    """Give the worker that this nanny will start a GPU of its own."""
    number = str(nanny.name).rpartition("-")[2]
    if number.isdigit():
        nanny.env["CUDA_VISIBLE_DEVICES"] = gpu_of(int(number), os.environ.get("CUDA_VISIBLE_DEVICES"))


def gpu_of(number: int, visible: str | None) -> str:
    """The GPU of worker `number` of a job, out of those that CUDA_VISIBLE_DEVICES lists for the job."""
    devices = [name.strip() for name in (visible or "").split(",") if name.strip()]
    return devices[number % len(devices)] if devices else str(number)
