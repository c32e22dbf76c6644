"""Two projections into one space, for retrieval across two streams."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import Head, HeadSpec, Options, Pair, Pooling, RecipeError, only_row, pool_segments

LARGEST_SCALE = 100.0


class ProjectionPairConfig(Options):
    """Options of the projections."""

    pooling: Pooling | None = Field(
        None,
        description="Mean of the rows, the first row, or the last; unset: of each stream as the backbone's table says.",
    )
    start: Literal["pretrained", "new"] | None = Field(
        None,
        description="Where the projections start: as the backbone's own, or random; unset: its own, where it has some and "
        "neither width nor a fusion's rows ask for others.",
    )
    width: int | None = Field(
        None, ge=1, description="Width of the common space; unset: that of the pretrained projections, or 256."
    )
    temperature: float = Field(0.07, gt=0, description="Temperature at the start; similarities are divided by it.")
    learn_temperature: bool = Field(True, description="Whether the temperature trains, down to 0.01.")


class ProjectionPair(Head):
    """Pooled rows of two streams -> vectors of length one in a common space, with a temperature between them."""

    Config = ProjectionPairConfig
    source = "CLIP, Radford et al. 2021, arXiv 2103.00020, section 2.3"
    trains = "P (D + D) + 1; P is the width of the common space, and each D that of its stream"
    kinds = ("retrieval",)
    output = "pair"

    def __init__(self, config: ProjectionPairConfig, spec: HeadSpec) -> None:
        super().__init__(config, spec)
        self.poolings = (config.pooling or spec.pooling, config.pooling or spec.second_pooling or spec.pooling)
        known = _pretrained(config, spec)
        width = config.width or (256 if known is None else len(known[0]))
        self.first = nn.Linear(spec.width, width, bias=False)
        self.second = nn.Linear(spec.width if spec.second_width is None else spec.second_width, width, bias=False)
        for number, projection in enumerate((self.first, self.second)):
            if known is None:
                nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
            else:
                projection.weight = nn.Parameter(known[number].clone())
        self.log_scale = nn.Parameter(
            torch.tensor(-math.log(config.temperature)), requires_grad=config.learn_temperature
        )

    def reads(self, lengths: Tensor, stream: int = 0) -> Tensor | None:
        return only_row(lengths, self.poolings[stream])

    def forward(self, rows: tuple[Tensor, Tensor], lengths: tuple[Tensor, Tensor]) -> Pair:
        first, second = (
            nn.functional.normalize(projection(pool_segments(of_stream, counts, pooling)), dim=-1)
            for projection, of_stream, counts, pooling in zip(
                (self.first, self.second), rows, lengths, self.poolings, strict=True
            )
        )
        return Pair(first, second, self.log_scale.exp().clamp(max=LARGEST_SCALE))


def _pretrained(config: ProjectionPairConfig, spec: HeadSpec) -> tuple[Tensor, Tensor] | None:
    """The backbone's projections, where the head starts from them. Raises RecipeError where it is to and cannot."""
    if config.start == "new":
        return None
    known = spec.meeting
    if known is None:
        if config.start == "pretrained":
            raise RecipeError("head.start: this backbone has no projections of its own; leave it out, or set it to new")
        return None
    fits = (known[0].shape[1], known[1].shape[1]) == (spec.width, spec.second_width)
    if fits and config.width in (None, len(known[0])):
        return known
    if config.start == "pretrained":
        wanted = f"{spec.width} and {spec.second_width} to {config.width or len(known[0])}"
        raise RecipeError(
            f"head.start: the backbone's projections lead from rows of {known[0].shape[1]} and {known[1].shape[1]} to "
            f"{len(known[0])}, and the recipe asks for {wanted}; set it to new"
        )
    return None
