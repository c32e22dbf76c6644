"""Linear regression on one pooled row a segment."""

from pydantic import Field
from torch import Tensor, nn

from ..contract import Head, HeadSpec, Options, Pooling, group_lasso, pool_segments


class RegressionConfig(Options):
    """Options of the regression."""

    pooling: Pooling | None = Field(
        None, description="Mean of the rows, the first row, or the last; unset: as the backbone's table says."
    )
    group_lasso: float = Field(
        0.0,
        ge=0,
        description="Factor of the group lasso on what reads the pooled row: the sum over its features of the norm of their "
        "weights, by which features fall out.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the pooled row.")


class Regression(Head):
    """Pooled row -> one number."""

    Config = RegressionConfig
    source = "linear probe"
    kinds = ("regression",)
    output = "score"

    def __init__(self, config: RegressionConfig, spec: HeadSpec) -> None:
        super().__init__(config, spec)
        self.pooling = config.pooling or spec.pooling
        self.group_lasso = config.group_lasso
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(spec.width, 1)
        nn.init.normal_(self.linear.weight, std=spec.initializer_range)
        nn.init.zeros_(self.linear.bias)

    def penalties(self) -> dict[str, Tensor]:
        return {"group_lasso": self.group_lasso * group_lasso(self.linear.weight)} if self.group_lasso else {}

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        pooled = self.dropout(pool_segments(rows, lengths, self.pooling))
        return self.linear(pooled).squeeze(-1)  # type: ignore[no-any-return]
