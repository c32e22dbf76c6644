"""Cross entropy over classes."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import UNLABELLED, Loss, Objective, ObjectiveSpec, Options, RecipeError, Targets, at_least_float32


class ClassificationConfig(Options):
    """Options of the cross entropy."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of each target that is spread over all classes.")
    class_weights: Literal["balanced"] | tuple[float, ...] | None = Field(
        None,
        description="Weight of each class, in the order of the labels; balanced: examples / (classes * examples of it).",
    )


class Classification(Objective):
    """Cross entropy of each labelled example; its weight is that of its class, one unless the classes are weighted."""

    Config = ClassificationConfig
    source = "label smoothing: Szegedy et al. 2016, arXiv 1512.00567; balanced weights: King & Zeng 2001"
    kinds = ("classification",)
    output = "classes"
    class_weights: Tensor | None

    def __init__(self, config: ClassificationConfig, spec: ObjectiveSpec) -> None:
        super().__init__(config, spec)
        self.label_smoothing = config.label_smoothing
        weights = None if config.class_weights is None else torch.tensor(_class_weights(config.class_weights, spec))
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, output: Tensor, targets: Targets) -> Loss:
        logits = at_least_float32(output)
        gold = self._gold(targets)
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        total = nn.functional.cross_entropy(
            logits,
            gold,
            weight=weights,
            ignore_index=UNLABELLED,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return Loss(total, self.weigh(targets), {"cross_entropy": total.detach()})

    def weigh(self, targets: Targets) -> Tensor:
        gold = self._gold(targets)
        labelled = gold >= 0
        if self.class_weights is None:
            return labelled.sum()
        # a sum of single weights in float32 would depend on how a batch is split; MPS has no float64
        wide = torch.float32 if gold.device.type == "mps" else torch.float64
        return (self.class_weights[gold.clamp(min=0)] * labelled).sum(dtype=wide)

    def _gold(self, targets: Targets) -> Tensor:
        """Classes [S]; ignored rather than selected where there is none: a selection would wait for the device."""
        if targets.gold is None:
            raise RecipeError(
                "objective.name: classification needs class labels, and this task has none; leave objective.name out for the "
                "one that fits"
            )
        return targets.gold.masked_fill(targets.gold < 0, UNLABELLED)


def _class_weights(wanted: str | tuple[float, ...], spec: ObjectiveSpec) -> list[float]:
    """A weight for each class. Raises RecipeError."""
    if isinstance(wanted, str):
        if not sum(spec.label_counts):
            raise RecipeError(
                "objective.class_weights: balanced needs labelled training examples, and there are none; give a number a "
                "class, or null"
            )
        present = [count for count in spec.label_counts if count]  # a class that never comes needs no weight
        return [sum(present) / (len(present) * count) if count else 0.0 for count in spec.label_counts]
    if len(wanted) != spec.classes or min(wanted) < 0 or not sum(wanted):
        raise RecipeError(
            f"objective.class_weights: {len(wanted)} weights for {spec.classes} classes: give one a class, none negative "
            "and not all of them 0"
        )
    return list(wanted)
