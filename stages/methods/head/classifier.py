"""Classifier on one pooled row a segment."""

from pydantic import Field
from torch import Tensor, nn

from ..contract import Head, HeadSpec, Options, Pooling, group_lasso, pool_segments


class ClassifierConfig(Options):
    """Options of the classifier."""

    pooling: Pooling | None = Field(
        None, description="Mean of the rows, the first row, or the last; unset: as the backbone's table says."
    )
    group_lasso: float = Field(
        0.0,
        ge=0,
        description="Factor of the group lasso on what reads the pooled row: the sum over its features of the norm of their "
        "weights, by which features fall out.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the pooled row and on the hidden one.")
    hidden: int | None = Field(None, ge=1, description="Width of a hidden tanh layer; unset: the classifier is linear.")


class Classifier(Head):
    """Pooled row -> one logit a class, through a hidden layer where one is asked for."""

    Config = ClassifierConfig
    source = "linear probe; with a hidden tanh layer as RoBERTa's head, Liu et al. 2019, arXiv 1907.11692"
    kinds = ("classification",)
    output = "classes"

    def __init__(self, config: ClassifierConfig, spec: HeadSpec) -> None:
        super().__init__(config, spec)
        self.pooling = config.pooling or spec.pooling
        self.group_lasso = config.group_lasso
        self.dropout = nn.Dropout(config.dropout)
        self.hidden = None if config.hidden is None else nn.Linear(spec.width, config.hidden)
        self.linear = nn.Linear(config.hidden or spec.width, spec.classes)
        for layer in (self.hidden, self.linear):
            if layer is not None:
                nn.init.normal_(layer.weight, std=spec.initializer_range)
                nn.init.zeros_(layer.bias)

    def penalties(self) -> dict[str, Tensor]:
        if not self.group_lasso:
            return {}
        first = self.linear if self.hidden is None else self.hidden
        return {"group_lasso": self.group_lasso * group_lasso(first.weight)}

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        pooled = self.dropout(pool_segments(rows, lengths, self.pooling))
        if self.hidden is not None:
            pooled = self.dropout(self.hidden(pooled).tanh())
        return self.linear(pooled)  # type: ignore[no-any-return]
