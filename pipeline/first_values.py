"""What a fusion or a tuner sets once before training is kept in the run's folder, so that going on needs neither the
pretrained model nor a second pass."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from ..stages.load import load_pretrained
from ..stages.pretrained import PretrainedModel, RunPreparation
from ..stages.tuner_preparation import RunTunerPreparation
from ..storage import commit
from ..storage.errors import StoreCorrupt, StoreStale
from .memory import peak_memory_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from ..stages.data import StoreBatches
    from ..stages.load import LoadedModel
    from ..stages.model import StageTwo
    from ..stages.objectives import ObjectiveSum
    from ..storage import Store
    from .run import Run

FILE = "first_values.safetensors"


def set_first_values(
    run: Run,
    store: Store,
    model: StageTwo,
    objective: ObjectiveSum,
    batches: StoreBatches,
    seed: int,
) -> None:
    """Let the fusion prepare itself, then the tuner, or take up what they did when the run began; nothing where they have
    nothing to do.

    What it cost is a line of metrics.jsonl: `prepared`, with seconds and peak memory. Raises StoreStale where the
    pretrained model is needed and its name now means other weights.
    """
    recipe, tuner = model.recipe, model.tuner
    fusion_prepares = type(model.fusion).prepares(recipe.fusion_options, model.specs)
    tuner_prepares = tuner is not None and tuner.prepares(recipe.tuner_options)
    if not fusion_prepares and not tuner_prepares:
        return
    path = run.root / FILE
    if path.is_file():
        cost = _take_up(path.read_bytes(), model, str(path))
    else:
        begun = time.perf_counter()

        def load() -> PretrainedModel:
            loaded = load_of(store.producer, model.compute.device)
            return PretrainedModel(loaded, model, objective.of_the_head(), batches, store.examples("train"))

        classes = len(store.producer["task"].get("labels") or ()) if batches.targets.output != "score" else 0
        if fusion_prepares:
            print(f"preparing the fusion {recipe.fusion}", file=sys.stderr)
            model.fusion.prepare(RunPreparation(classes, seed, batches, load))
        if tuner is not None and tuner_prepares:
            print(f"preparing the tuner {recipe.tuner}", file=sys.stderr)
            tuner.prepare(RunTunerPreparation(classes, seed, batches, load, model, objective))
        cost = {"seconds": time.perf_counter() - begun, "peak_memory_bytes": peak_memory_bytes()}
        commit.replace(path, _saved(model, cost))
    run.log({"prepared": cost})


def load_of(producer: Mapping[str, Any], device: torch.device) -> LoadedModel:
    """The pretrained model that a store was made with. Raises StoreStale when its name now means other weights."""
    known = producer["model"]
    loaded = load_pretrained(known["name"], known["revision"], known["precision"], device, known.get("answers"))
    if loaded.weights_digest != known["weights"]:
        raise StoreStale(
            f"{known['name']} is not the model that the store was made with: weights {loaded.weights_digest[:12]}.. now, "
            f"{known['weights'][:12]}.. then; give the old checkpoint back, or extract again"
        )
    return loaded


def _prepared(model: StageTwo) -> dict[str, Tensor]:
    state = model.trainable_state_dict()
    return {name: value for name, value in state.items() if name.startswith(("fusion.", "tuner."))}


def _saved(model: StageTwo, cost: Mapping[str, float]) -> bytes:
    from safetensors.torch import save

    tensors = {name: value.cpu().contiguous() for name, value in _prepared(model).items()}
    data: bytes = save(tensors, metadata={name: repr(value) for name, value in cost.items()})
    return data


def _take_up(data: bytes, model: StageTwo, where: str) -> dict[str, float]:
    import json

    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
        cost = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    except (SafetensorError, ValueError, KeyError) as error:
        raise StoreCorrupt(f"{where} is damaged ({error}); remove it, and the run prepares itself again") from None
    model.load_trainable_state_dict({**model.trainable_state_dict(), **tensors})
    return {name: float(value) for name, value in cost.items()}
