"""How the forward is computed: its precision and whether the fusion is compiled, refused where the machine cannot."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Literal

import torch

from ..storage.errors import RecipeError

if TYPE_CHECKING:
    from .methods.contract import Fusion

Precision = Literal["float32", "bfloat16"]


def require_precision(precision: Precision, device: torch.device) -> None:
    """Raise RecipeError where the device cannot compute in that precision."""
    if precision == "bfloat16" and not _has_bfloat16(device):
        raise RecipeError(f"train.precision: {device} does not compute in bfloat16; use float32")


def compile_fusion(fusion: Fusion, device: torch.device) -> None:
    """Have torch.compile make the fusion's forward; it is made at the first call, for any number of rows.

    Only the forward is replaced: hooks, names and weights stay. Raises RecipeError where there is no compiler.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if compiler is None or shutil.which(compiler) is None:
        named = f"no C++ compiler {compiler!r} ($CXX)" if compiler else "no C++ compiler (g++ or clang++)"
        raise RecipeError(f"train.compile: {named} was found on PATH; install one, or set train.compile to false")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 0):
        raise RecipeError(f"train.compile: {torch.cuda.get_device_name(device)} is too old for it; set it to false")
    object.__setattr__(fusion, "forward", torch.compile(fusion.forward, dynamic=True))


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    return True
