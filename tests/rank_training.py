"""Training in float64 by the ranks of this process's environment: what one rank of a test runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from live_oracle import redraw
from safetensors.torch import save_file
from stage_two_oracle import double_precision

from sherl_cache.pipeline.objectives import choose_objective, label_counts
from sherl_cache.pipeline.reading import batches_of, open_stream
from sherl_cache.pipeline.recipe import load_recipe
from sherl_cache.pipeline.run import weights_digest
from sherl_cache.pipeline.together import together
from sherl_cache.pipeline.training import stage_two
from sherl_cache.stages.evaluate import Evaluator, evaluate
from sherl_cache.stages.optimization import TrainSettings
from sherl_cache.stages.ranks import Ranks
from sherl_cache.stages.train import TrainingLoop
from sherl_cache.storage import ReadBuffers, Store
from sherl_cache.storage.errors import Interrupted

SETTINGS: dict[str, Any] = {"learning_rate": 1e-3, "late_learning_rate": 1e-4, "weight_decay": 0.01}


class Told:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def log(self, record: Any) -> None:
        self.records.append(dict(record))

    def checkpoint(self, loop: TrainingLoop) -> None: ...
    def better(self, loop: TrainingLoop) -> None: ...


def train_in_ranks(store: str, folder: str, recipes: dict[str, Sequence[str]], epochs: int, dtype: str) -> None:
    """Train every recipe one after the other; rank r leaves `<recipe>-<r>.json` and `.safetensors`."""
    with together("cpu") as ranks:
        for name, overrides in recipes.items():
            told, weights = trained(Store.open(store), overrides, epochs, ranks, getattr(torch, dtype))
            told["digest"] = weights_digest(weights)
            path = Path(folder) / f"{name}-{ranks.rank}"
            save_file({key: value.contiguous() for key, value in weights.items()}, f"{path}.safetensors")
            path.with_suffix(".json").write_text(json.dumps(told))


def trained(
    store: Store, overrides: Sequence[str], epochs: int, ranks: Ranks, dtype: torch.dtype = torch.float64
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What was logged and scored, and the weights. Every trained parameter is drawn anew, since gates at 0 hide mistakes."""
    recipe = load_recipe("sherl", ("dropout={}", "data.batch_examples=24", *overrides))
    model = stage_two(recipe, store.producer, lambda name: store.file(f"weights/{name}")).to(dtype)
    redraw(model, seed=5)
    objective = choose_objective(recipe, model, store.producer["task"]["kind"], label_counts(store)).to(dtype)
    buffers, device = ReadBuffers(1 << 26), torch.device("cpu")
    train, validation = (
        batches_of(open_stream(recipe.data, store, [model], split, buffers, ranks), model, device, micro)
        for split, micro in (("train", recipe.train.micro_batch_examples), ("validation", None))
    )
    told = Told()
    loop = TrainingLoop(model, objective, train, TrainSettings(epochs=epochs, **SETTINGS), ranks)
    task = store.producer["task"]
    candidates = len(task["target_ids"]) if model.head.output == "tokens" else None
    found: list[Any] = []

    def validate() -> tuple[float, dict[str, Any]]:
        scores = evaluate(Evaluator(model, objective, validation, task["metric"], candidates, ranks))
        found.append([scores.value, scores.scores, scores.predictions.tolist()])
        return scores.higher, scores.scores

    with double_precision(model):
        loop.run(told, validate)
    kept = ("loss", "parts", "gradient_norm", "step", "examples", "tokens")
    records = [{key: record[key] for key in kept} for record in told.records if "loss" in record]
    return {"records": records, "scores": found}, model.trainable_state_dict()


def run_in_ranks(store: str, folder: str, overrides: Sequence[str]) -> None:
    """A run with its folder, in float64: begun, or gone on with. Ends as the command line does."""
    from sherl_cache.pipeline.run import Run
    from sherl_cache.pipeline.training import Training

    opened, recipe = Store.open(store), load_recipe("sherl", ("dropout={}", "data.batch_examples=24", *overrides))
    try:
        with together("cpu") as ranks:
            training = Training.of(recipe, opened, ranks)
            training.model.double()
            training.objective.double()
            redraw(training.model, seed=5)
            facts = {"store_fingerprint": opened.fingerprint, "producer": opened.producer}
            run = Run.create(Path(folder), recipe, facts) if ranks.first else None
            with double_precision(training.model):
                result = training.run(run)
            if run is not None:
                run.finish(result)
    except Interrupted as error:
        print(error)
        raise SystemExit(error.exit_code) from None
