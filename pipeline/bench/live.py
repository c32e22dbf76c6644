"""The same recipe hung into the live model: every step runs the early layers, without gradients there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...stages.data import TargetTable
from ...stages.device import choose_device
from ...stages.late_weights import late_weights
from ...stages.live import LiveModel
from ..first_values import load_of
from ..live import as_stored
from ..objectives import choose_objective, label_counts
from ..training import stage_two
from .inputs import LiveInputs
from .way import Way, steps_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from ...storage import Store
    from ..recipe import Recipe
    from .examples import Examples


def live(recipe: Recipe, store: Store, batches: Sequence[Examples]) -> Way:
    """Raises ModelError, StoreStale where the model of the store is no longer there."""
    device = choose_device(recipe.train.device)
    producer = store.producer
    loaded = as_stored(load_of(producer, device), producer["model"])
    model = stage_two(recipe, producer, late_weights(loaded, producer["late"]).__getitem__).to(device)
    whole = LiveModel(loaded, model)
    counts = label_counts(store)
    objective = choose_objective(recipe, model, producer["task"]["kind"], counts).of_the_head().to(device)
    table = store.examples("train")
    targets = TargetTable(table, producer["task"], model.head.output, model.exit_streams)
    answers = any(model.table.stream(name).answers for name in model.reads)
    inputs = LiveInputs(store, loaded, answers)

    def loss_of(examples: Examples) -> Callable[[], Tensor]:
        batch = inputs.batch(examples)
        if model.reads_tasks:
            batch = replace(batch, tasks=[model.tasks.index(name) for name in inputs.tasks(examples)])
        wanted = targets.of(examples, "gold", device)

        def loss() -> Tensor:
            found = objective(whole.forward(batch, whole.select(batch)), wanted)
            mean: Tensor = found.sum / found.weight
            penalties = model.penalties()
            return torch.stack([mean, *penalties.values()]).sum() if penalties else mean

        return loss

    def losses() -> Iterator[list[tuple[float, Callable[[], Tensor]]]]:
        for examples in batches:
            yield [(share, loss_of(part)) for share, part in inputs.parts(examples, recipe.train.micro_batch_examples)]

    parameters = list(model.trained_parameters().values())
    return Way(
        modules=(loaded.model, model, objective),
        trained=parameters,
        steps=steps_of(parameters, losses(), recipe.train, device),
        facts={"number format of the live model": loaded.precision, "attention": inputs.attention},
    )
