"""Two projections into one space, for retrieval across two streams."""

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import Head, HeadSpec, Options, Pair, Pooling, pool_segments

LARGEST_SCALE = 100.0


class ProjectionPairConfig(Options):
    """Options of the projections."""

    pooling: Pooling | None = Field(
        None, description="Mean of the rows, the first row, or the last; unset: as the backbone's table says."
    )
    width: int = Field(256, ge=1, description="Width of the common space.")
    temperature: float = Field(0.07, gt=0, description="Temperature at the start; similarities are divided by it.")
    learn_temperature: bool = Field(True, description="Whether the temperature trains, down to 0.01.")


class ProjectionPair(Head):
    """Pooled rows of two streams -> vectors of length one in a common space, with a temperature between them."""

    Config = ProjectionPairConfig
    source = "CLIP, Radford et al. 2021, arXiv 2103.00020, section 2.3"
    kinds = ("retrieval",)
    output = "pair"

    def __init__(self, config: ProjectionPairConfig, spec: HeadSpec) -> None:
        super().__init__(config, spec)
        self.pooling = config.pooling or spec.pooling
        self.first = nn.Linear(spec.width, config.width, bias=False)
        self.second = nn.Linear(
            spec.width if spec.second_width is None else spec.second_width, config.width, bias=False
        )
        for projection in (self.first, self.second):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        self.log_scale = nn.Parameter(
            torch.tensor(-math.log(config.temperature)), requires_grad=config.learn_temperature
        )

    def forward(self, rows: tuple[Tensor, Tensor], lengths: tuple[Tensor, Tensor]) -> Pair:
        first, second = (
            nn.functional.normalize(projection(pool_segments(of_stream, counts, self.pooling)), dim=-1)
            for projection, of_stream, counts in zip((self.first, self.second), rows, lengths, strict=True)
        )
        return Pair(first, second, self.log_scale.exp().clamp(max=LARGEST_SCALE))
