"""Learned rows in front of the state that enters the late layers."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import LateOps, Options, Tuner


class Config(Options):
    length: int = Field(default=20, ge=1, description="How many rows stand in front of each segment.")
    init_std: float = Field(default=0.02, gt=0, description="Standard deviation of new rows.")


class Prompt(Tuner):
    """Learned rows that pass the late layers in front of every segment and are dropped behind them.

    Prompt tuning at the depth of the late layers, not at the embeddings: cached states stay what they are. Rows of
    text keep their positions; where positions are relative, the prompt lies in front of the first row. p d parameters
    for each stream with late layers.
    """

    source = "Lester et al. 2021, arXiv:2104.08691 (late form); as VPT-shallow, Jia et al. 2022, arXiv:2203.12119"
    trains = "length D, a stream"
    Config = Config
    starts_as_identity = False
    mixes_rows = True

    def __init__(self, config: Any, ops: LateOps) -> None:
        super().__init__()
        self.rows = nn.ParameterDict(
            {
                name: nn.Parameter(torch.randn(config.length, width) * config.init_std)
                for name, width in ops.streams.items()
            }
        )

    @classmethod
    def from_options(cls, options: Mapping[str, Any], ops: LateOps) -> Self:
        return cls(cls.validated(options), ops)

    def leading_rows(self) -> dict[str, Tensor]:
        return dict(self.rows.items())
