"""Redundancy between the channels of fused features, after Barlow Twins."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..contract import (
    Loss,
    Objective,
    ObjectiveSpec,
    Options,
    Outputs,
    Packed,
    Pooling,
    RecipeError,
    Targets,
    at_least_float32,
    did_you_mean,
    pool_segments,
)

EPSILON = 1e-5
"""Added to the variance of a channel, as batch normalisation does."""


class BarlowConfig(Options):
    """Options of the redundancy term."""

    form: Literal["decorrelate", "align"] = Field(
        "decorrelate",
        description="decorrelate: channels of the fused features among themselves; align: Barlow Twins between them and "
        "the deepest tap that was read.",
    )
    stream: str | None = Field(None, description="Fused stream that is looked at; unset: the mean over all of them.")
    pooling: Pooling = Field("mean", description="A segment's features: mean of its rows, the first, or the last.")
    balance: float = Field(0.0051, ge=0, description="Weight of the off-diagonal against the diagonal, in align.")
    subtract_floor: bool = Field(
        True, description="Take off 1 / (batch - 1), what independent channels have by chance in a batch of that size."
    )


class Barlow(Objective):
    """Redundancy of pooled fused features [S, D]: squared correlations between channels over the batch.

    With C the correlation matrix of batch-standardised features, `decorrelate` is the mean of C_ij^2 over i != j, and
    `align` (sum_i (1 - C_ii)^2 + balance * sum_{i != j} C_ij^2) / D, C between fused features and the pooled deepest tap,
    which has no gradient. Both are divided so that a weight means the same at any width. The form that sets layers
    against each other needs layers with a gradient; cached taps have none.
    """

    Config = BarlowConfig
    source = "Barlow Twins, Zbontar et al. 2021, arXiv 2103.03230, eqs. 1 and 2"
    kinds = ("classification", "regression", "retrieval")
    output = "features"
    couples_batch = True

    def __init__(self, config: BarlowConfig, spec: ObjectiveSpec) -> None:
        super().__init__(config, spec)
        self.config = config
        if config.stream is not None and spec.streams and config.stream not in spec.streams:
            hint = did_you_mean(config.stream, spec.streams)
            raise RecipeError(
                f"objective.stream: no stream {config.stream!r}{hint}; there are {', '.join(spec.streams)}"
            )

    def forward(self, output: Outputs, targets: Targets) -> Loss:
        names = list(output.fused) if self.config.stream is None else [self.config.stream]
        values, weight = [], 0
        for name in names:
            fused = self._pooled(output.fused[name], 0)
            weight = max(weight, len(fused))
            values.append(self._redundancy(fused, output.taps[name]))
        value = torch.stack(values).mean() * weight
        return Loss(value, value.new_tensor(float(weight)), {self.config.form: value.detach()})

    def _redundancy(self, fused: Tensor, taps: Packed) -> Tensor:
        examples, width = fused.shape
        if examples < 2:  # no correlation is defined
            return fused.sum() * 0.0
        floor = 1.0 / (examples - 1) if self.config.subtract_floor else 0.0
        if self.config.form == "decorrelate":
            correlation = cross_correlation(fused, fused)
            return (off_diagonal(correlation).square() - floor).sum() / max(width * (width - 1), 1)
        correlation = cross_correlation(fused, self._pooled(taps, -1).detach())
        invariance = (1.0 - correlation.diagonal()).square().sum()
        redundancy = (off_diagonal(correlation).square() - floor).sum()
        return (invariance + self.config.balance * redundancy) / width

    def _pooled(self, packed: Packed, depth: int) -> Tensor:
        return at_least_float32(pool_segments(packed.taps[depth], packed.lengths, self.config.pooling))


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Correlation over the batch of every channel of one with every channel of the other: [B, D], [B, E] -> [D, E]."""
    return standardised(first).T @ standardised(second) / len(first)


def standardised(features: Tensor) -> Tensor:
    """Features [B, D] with mean 0 and variance 1 over the batch; a constant channel becomes 0."""
    centred = features - features.mean(0)
    return centred * torch.rsqrt(centred.square().mean(0) + EPSILON)


def off_diagonal(matrix: Tensor) -> Tensor:
    """[D, D] -> [D * (D - 1)], everything but the diagonal."""
    size = len(matrix)
    return matrix.flatten()[:-1].view(size - 1, size + 1)[:, 1:].flatten() if size > 1 else matrix.new_zeros(0)
