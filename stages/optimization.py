"""How a run is optimised: its settings, AdamW, the schedule of the learning rate, the seed of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from .model import StageTwo


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The optimisation. AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with linear warm-up, decay and clipping."""

    epochs: int
    learning_rate: float
    """Of everything that trains but the late blocks."""
    late_learning_rate: float
    weight_decay: float = 0.0
    """Decoupled, on weights of two and more dimensions."""
    warmup: float = 0.06
    """Steps; below 1, that share of all steps."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    clip_norm: float | None = 1.0
    patience: int | None = None
    """Epochs without a better score before the loop stops; None: never."""
    checkpoint_steps: int = 200
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: products of the forward and its backward by autocast; weights, losses and validation stay as they are."""


def learning_rate_factor(step: int, total: int, settings: TrainSettings) -> float:
    """Share of the learning rate at `step` (from 0): a linear rise over the warm-up, then the schedule down to 0 at
    `total`.
    """
    warmup = settings.warmup * total if settings.warmup < 1 else settings.warmup
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return 1.0 - done if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def adamw(model: StageTwo, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over what trains; vectors and scalars do not decay."""
    groups = []
    for group in model.parameter_groups(settings.learning_rate, settings.late_learning_rate):
        for decays in (True, False):
            chosen = [parameter for parameter in group["params"] if (parameter.ndim > 1) == decays]
            if chosen:
                decay = settings.weight_decay if decays else 0.0
                groups.append({"params": chosen, "lr": group["lr"], "weight_decay": decay})
    # one kernel over all tensors where there is one: a third of the time on a CPU
    return torch.optim.AdamW(groups, fused=model.compute.device.type in ("cpu", "cuda"))


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """A seed for one step (the 64-bit finaliser of splitmix64), so that neighbouring steps, and ranks, which drop out of
    other rows, do not share draws.
    """
    value = (seed * 0x9E3779B97F4A7C15 + step + 1) & 0xFFFFFFFFFFFFFFFF
    value ^= rank * 0xD1B54A32D192ED03 & 0xFFFFFFFFFFFFFFFF
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = ((value ^ (value >> shift)) * factor) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) & 0x7FFFFFFFFFFFFFFF
