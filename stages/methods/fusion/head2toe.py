"""Head2Toe (Evci et al. 2022, ICML, arXiv 2201.03529): a linear head on features chosen from every layer.

Each tap is pooled to one vector a segment and scaled to length 1; all of them side by side are F features. Before
training, a linear model with a group lasso, lambda * sum over features f of |W_f|, is fitted to them, and the share
`keep` with the largest sum over classes of W_fc^2 is kept; the head is trained on these. With `keep: 1` and the head's own
option `group_lasso` the same penalty is part of the run's objective instead. The published features include
states inside of blocks; a store holds what enters and leaves them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import (
    Options,
    Preparation,
    RecipeError,
    SegmentBlock,
    StreamSpec,
    StreamwiseFusion,
    group_lasso,
    pool_segments,
)


class Head2ToeConfig(Options):
    """Options of Head2Toe."""

    taps: str | None = Field(None, description="Taps to take features from; unset: every tap.")
    keep: float = Field(
        0.1, gt=0, le=1, description="Share of the features that is kept; 1: all, and nothing is fitted."
    )
    penalty: float = Field(1e-4, ge=0, description="Weight lambda of the group lasso by which features are chosen.")
    learning_rate: float = Field(0.01, gt=0, description="Of the fit that chooses, by Adam with a cosine to 0.")
    steps: int = Field(500, ge=1, description="Steps of that fit.")
    batch: int = Field(128, ge=1, description="Examples a step of that fit.")
    examples: int = Field(10_000, ge=1, description="Training examples of that fit, held in memory as features.")


class Head2ToeBlock(SegmentBlock):
    """Pools taps and hands on the kept features, `kept` int64 [M]."""

    kept: Tensor

    def __init__(self, config: Head2ToeConfig, spec: StreamSpec, taps: tuple[int, ...]) -> None:
        super().__init__(config, spec, taps)
        self.config = config
        self.all_features = len(taps) * spec.width
        self.out_width = max(round(config.keep * self.all_features), 1)
        self.register_buffer("kept", torch.arange(self.out_width))

    def forward(self, taps: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.features(taps, lengths)[:, self.kept], torch.ones_like(lengths)

    def features(self, taps: Tensor, lengths: Tensor) -> Tensor:
        """[K, N, D] and [S] -> every feature, [S, K * D]; rows of zeros stay zero."""
        pooled = [nn.functional.normalize(pool_segments(tap, lengths, "mean"), dim=-1) for tap in taps]
        return torch.cat(pooled, dim=-1)


class Head2Toe(StreamwiseFusion):
    """Pooled features of every layer, of which a group lasso chooses those that the head is trained on."""

    Config = Head2ToeConfig
    source = "Head2Toe, Evci et al. 2022, arXiv 2201.03529"
    block = Head2ToeBlock
    exit_norm = "none"
    enters_late = False

    @classmethod
    def prepares(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> bool:
        return any(config.keep < 1 for config in cls.stream_configs(options, streams).values())

    @torch.no_grad()
    def prepare(self, preparation: Preparation) -> None:
        for name, block in self.blocks.items():
            assert isinstance(block, Head2ToeBlock)
            features, answers, count = [], [], 0
            for batch in preparation.batches():
                packed = batch.inputs[name]
                wanted = batch.targets.gold if preparation.classes else batch.targets.score
                if wanted is None:
                    raise RecipeError(
                        "fusion.keep: head2toe chooses features by the labels of a task, and this one has none; set it to 1"
                    )
                known = wanted >= 0 if preparation.classes else ~wanted.isnan()
                features.append(block.features(packed.taps, packed.lengths)[known].float())
                answers.append(wanted[known])
                count += len(answers[-1])
                if count >= block.config.examples:
                    break
            scores = feature_scores(
                torch.cat(features), torch.cat(answers), preparation.classes, block.config, preparation.seed
            )
            block.kept.copy_(scores.topk(block.out_width).indices.sort().values)


@torch.enable_grad()
def feature_scores(features: Tensor, answers: Tensor, classes: int, config: Head2ToeConfig, seed: int) -> Tensor:
    """Sum over classes of W_fc^2 of a linear model with a group lasso, [F].

    features: [S, F]; answers: int64 [S] of that many classes, or, where there are none, float [S].
    """
    weight = torch.zeros(features.shape[1], max(classes, 1), device=features.device, requires_grad=True)
    bias = torch.zeros(max(classes, 1), device=features.device, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    random = torch.Generator().manual_seed(seed)
    for _ in range(config.steps):
        chosen = torch.randint(len(features), (min(config.batch, len(features)),), generator=random).to(features.device)
        output = features[chosen] @ weight + bias
        if classes:
            loss = nn.functional.cross_entropy(output, answers[chosen])
        else:
            loss = nn.functional.mse_loss(output.squeeze(-1), answers[chosen].float())
        optimizer.zero_grad()
        (loss + config.penalty * group_lasso(weight.T)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return weight.detach().square().sum(1)
