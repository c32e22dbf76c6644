"""The objective of a recipe: which terms fit what the head gives, and their sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..stages.methods.contract import Objective, ObjectiveSpec
from ..stages.objectives import ObjectiveSum
from ..stages.plugins import find, names
from ..storage.errors import RecipeError

if TYPE_CHECKING:
    from ..stages.model import StageTwo
    from ..storage import Store
    from .recipe import Recipe


def choose_objective(recipe: Recipe, model: StageTwo, kind: str, label_counts: tuple[int, ...] = ()) -> ObjectiveSum:
    """The sum of the objectives that a recipe names; one without a name is that which reads what the head gives.

    label_counts: labelled training examples of each class. Raises RecipeError.
    """
    fitting = _fitting(model, kind)
    spec = ObjectiveSpec(classes=len(label_counts), label_counts=label_counts, streams=model.fused_streams)
    terms: dict[str, tuple[float, Objective]] = {}
    for term in recipe.objective:
        name = term.name or next((name for name, method in fitting.items() if method.output != "features"), None)
        if name not in fitting:
            raise RecipeError(
                f"objective.name: {name} does not read the {model.head.output} that this head gives for a {kind}; "
                f"fitting: {', '.join(fitting) or 'none'}"
            )
        same = sum(taken.partition(" ")[0] == name for taken in terms)
        label = name if not same else f"{name} {same + 1}"
        terms[label] = term.weight, fitting[name].from_options(term.options, spec)
    if all(objective.output == "features" for _, objective in terms.values()):
        raise RecipeError(
            f"objective: {' and '.join(terms)} teaches the fused features and nothing teaches the head; add the objective "
            "of the task, as in [{}, {name: barlow, weight: 0.05}]"
        )
    found = ObjectiveSum(terms)
    if found.coupling and recipe.train.micro_batch_examples is not None:
        raise RecipeError(
            f"train.micro_batch_examples: the objective {found.coupling[0]} compares the examples of a batch with each "
            "other and needs all of them at once; set it to null"
        )
    return found


def label_counts(store: Store) -> tuple[int, ...]:
    """Labelled training examples of each class of a task with classes."""
    labels = store.producer["task"].get("labels") or ()
    known = store.examples("train").label
    classes = known[~np.isnan(known)].astype(np.int64) if labels else np.empty(0, np.int64)
    counts: list[int] = np.bincount(classes, minlength=len(labels))[: len(labels)].tolist()
    return tuple(counts)


def _fitting(model: StageTwo, kind: str) -> dict[str, type[Objective]]:
    candidates = {name: find("objective", name) for name in names("objective")}
    return {
        name: method
        for name, method in candidates.items()
        if issubclass(method, Objective) and kind in method.kinds and method.output in (model.head.output, "features")
    }
