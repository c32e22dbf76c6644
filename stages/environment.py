"""What computes: versions, device, threads. It may move the last bits of a forward."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .load import LoadedModel


def versions() -> dict[str, str]:
    """Versions of what computes."""
    packages = ("torch", "transformers", "zarr", "pyarrow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def environment(loaded: LoadedModel, device: torch.device) -> dict[str, str]:
    """What may move the last bits of a forward; recorded, warned about, never refused."""
    return {"attention": str(getattr(loaded.config, "_attn_implementation", "unknown")), **machine(device)}


def machine(device: torch.device) -> dict[str, str]:
    """What computes here, of the things that may move last bits."""
    return {
        **versions(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }
