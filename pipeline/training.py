"""Put a training run together: store, model, batches, validation, checkpoints."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..stages.build import StageTwoRecipe, build_stage_two
from ..stages.cached_block import read_first_block
from ..stages.compute import compile_fusion, require_precision
from ..stages.data import StoreBatches, allocator
from ..stages.device import choose_device
from ..stages.evaluate import Evaluation, Evaluator, evaluate
from ..stages.optimization import TrainSettings
from ..stages.probe import MOST_EXAMPLES, PooledStates, logistic_regression_score
from ..stages.train import TrainingLoop
from ..storage import ReadBuffers, Store, Stream
from ..storage.errors import RecipeError
from .first_values import set_first_values
from .memory import peak_memory_bytes
from .objectives import choose_objective, label_counts
from .progress import Progress, progress
from .reading import batches_of, open_stream, reading_line, require_taps
from .run import Run, weights_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from ..stages.model import StageTwo
    from ..stages.objectives import ObjectiveSum
    from .recipe import Recipe
    from .recipe_sections import Data


@dataclass(frozen=True)
class Parts:
    """What a recipe trains, put together over a store; nothing is read yet."""

    recipe: Recipe
    store: Store
    device: torch.device
    model: StageTwo
    objective: ObjectiveSum

    @classmethod
    def of(cls, recipe: Recipe, store: Store) -> Parts:
        """Raises RecipeError, ModelError."""
        device = choose_device(recipe.train.device)
        require_precision(recipe.train.precision, device)
        model = stage_two(recipe, store.producer, lambda name: store.file(f"weights/{name}")).to(device)
        require_taps(store, model)
        stored = next(iter(store.plan.splits.values())).streams
        read_first_block(model, {name: stream.taps for name, stream in stored.items()})
        if not model.trained_parameters():
            raise RecipeError(
                f"nothing trains: the fusion {recipe.fusion.name} and the head have no weights of their own and the late blocks "
                "are frozen; set late.mode to full, or choose another fusion"
            )
        counts = label_counts(store)
        objective = choose_objective(recipe, model, store.producer["task"]["kind"], counts).to(device)
        if recipe.train.compile:
            compile_fusion(model.fusion, device)
        return cls(recipe, store, device, model, objective)


@dataclass(frozen=True)
class Training:
    """A recipe over a store, put together and found possible; nothing is written yet."""

    store: Store
    model: StageTwo
    objective: ObjectiveSum
    batches: StoreBatches
    validation: StoreBatches | None
    loop: TrainingLoop

    @classmethod
    def of(cls, recipe: Recipe, store: Store) -> Training:
        """Every check is made here: methods and their options, taps, budget, splits. Raises RecipeError, ModelError,
        BudgetTooSmall, DataError.
        """
        parts = Parts.of(recipe, store)
        buffers = ReadBuffers(int(recipe.data.read_budget), allocator(parts.device))
        train, validation = open_streams(recipe.data, [parts], buffers)
        return cls.over(parts, train, validation)

    @classmethod
    def over(cls, parts: Parts, train: Stream, validation: Stream | None) -> Training:
        """The training over streams that read all that its model reads, and perhaps more."""
        recipe, model = parts.recipe, parts.model
        batches = batches_of(train, model, parts.device, recipe.train.micro_batch_examples)
        held_out = None if validation is None else batches_of(validation, model, parts.device, None)
        loop = TrainingLoop(model, parts.objective, batches, _settings(recipe))
        return cls(parts.store, model, parts.objective, batches, held_out, loop)

    def run(self, run: Run) -> dict[str, Any]:
        """Train to the end, or from the newest checkpoint to the end; the result of the run."""
        loop, validation = self.loop, self.validation
        if run.resume(loop):
            print(f"going on from step {loop.at.step} of {loop.total_steps}", file=sys.stderr)
        else:
            self.set_first_values(run)
        with progress("train", loop.total_steps, "steps", loop.at.step) as bar:
            loop.run(Recorder(run, bar, self.batches.stream.buffers), self._validate_into(run))
        streams = [self.batches.stream] + ([] if validation is None else [validation.stream])
        print(reading_line(streams), file=sys.stderr)
        states = self.probe_states()
        return self.result(run, None if states is None else (states[0].read(), states[1].read()))

    def result(self, run: Run, states: tuple[PooledStates, PooledStates] | None) -> dict[str, Any]:
        """What came of a run that has ended; `states` are its `probe_states`, read."""
        at, metric = self.loop.at, self.store.producer["task"]["metric"]
        at_best = next((item for item in at.history if item["epoch"] == at.best_epoch), {})
        return {
            "steps": at.step,
            "metric": at_best.get("metric", "none"),
            "best": at_best.get("value"),
            "best_epoch": at.best_epoch,
            "trained_parameters": sum(parameter.numel() for parameter in self.model.trained_parameters().values()),
            "seconds": at.seconds,
            "peak_memory_bytes": peak_memory_bytes(),
            "weights_digest": weights_digest(run.best_weights()),
            "synthetic": bool(self.store.producer["data"]["synthetic"]),
            "history": at.history,
            "taps": {stream: list(taps) for stream, taps in self.model.reads.items()},
            **({} if states is None else {"logistic_regression": logistic_regression_score(*states, metric)}),
        }

    def evaluator(self) -> Evaluator:
        """What scores the validation split, batch after batch."""
        assert self.validation is not None
        task = self.store.producer["task"]
        return Evaluator(self.model, self.objective, self.validation, task["metric"], _candidates(task, self.model))

    def keep(self, run: Run, found: Evaluation) -> tuple[float, dict[str, Any]]:
        """Keep the answers of an epoch that is the best so far; (score, record) for the loop."""
        best = self.loop.at.best
        if best is None or found.higher > best:
            run.save_predictions(self.store.examples("validation"), found)
        return found.higher, {"metric": found.metric, "value": found.value, **found.scores}

    def set_first_values(self, run: Run) -> None:
        """Before the first step: see pipeline/first_values.py."""
        seed = self.loop.settings.seed
        set_first_values(run, self.store, self.model, self.objective, self.batches, seed)

    def _validate_into(self, run: Run) -> Callable[[], tuple[float, dict[str, Any]]] | None:
        """What scores the validation split after an epoch, and keeps the answers of the best one in the run."""
        if self.validation is None:
            return None
        return lambda: self.keep(run, evaluate(self.evaluator()))

    def probe_states(self) -> tuple[PooledStates, PooledStates] | None:
        """Of a linear probe over a closed set of labels, which trains nothing but its head: what a check by logistic
        regression reads of train and of validation; nothing for other recipes.
        """
        head, validation = self.model.head, self.validation
        pooling = getattr(head, "pooling", None)
        probes = all(name.startswith("head.") for name in self.model.trained_parameters())
        if (
            not probes
            or pooling is None
            or head.output != "classes"
            or validation is None
            or self.model.late is not None
            or self.model.fusion.widths[self.model.exit_stream] != self.model.specs[self.model.exit_stream].width
        ):
            return None
        train = PooledStates(self.model, pooling, self.batches, MOST_EXAMPLES)
        return train, PooledStates(self.model, pooling, validation, None)


def stage_two(recipe: Recipe, producer: Mapping[str, Any], open_weights: Callable[[str], bytes]) -> StageTwo:
    """The model of a recipe over what a store's producer block says. Raises RecipeError."""
    wanted = StageTwoRecipe(
        fusion=recipe.fusion.name or "sherl",
        fusion_options=recipe.fusion.options,
        late=recipe.late.blocks,
        mode=recipe.late_mode,
        tuner=recipe.tuner.name,
        tuner_options=recipe.tuner.options,
        head=recipe.head.name,
        head_options=recipe.head.options,
        features_dropout=recipe.dropout.features,
        late_dropout=recipe.dropout.late,
        head_dropout=recipe.dropout.head,
    )
    return build_stage_two(producer, open_weights, wanted, recipe.seed)


def open_streams(data: Data, parts: Sequence[Parts], buffers: ReadBuffers) -> tuple[Stream, Stream | None]:
    """Train, and validation where the store holds one, with all that some models read. Raises BudgetTooSmall, DataError."""
    store, models = parts[0].store, [part.model for part in parts]
    train = open_stream(data, store, models, "train", buffers)
    held_out = "validation" in store.plan.splits
    return train, open_stream(data, store, models, "validation", buffers) if held_out else None


def _candidates(task: Mapping[str, Any], model: StageTwo) -> int | None:
    """How many stored answers label scoring chooses from; see evaluate_store."""
    if model.head.output != "tokens":
        return None
    return 0 if task["target_ids"] is None else len(task["target_ids"])


def _settings(recipe: Recipe) -> TrainSettings:
    known = {field.name for field in fields(TrainSettings)}
    section = {key: value for key, value in recipe.train.model_dump().items() if key in known}
    return TrainSettings(late_learning_rate=recipe.late.learning_rate, seed=recipe.seed, **section)


class Recorder:
    """The run's folder, with progress beside it."""

    def __init__(self, run: Run, bar: Progress, buffers: ReadBuffers | None = None) -> None:
        self.run, self.bar, self.buffers = run, bar, buffers

    def log(self, record: Mapping[str, Any]) -> None:
        if "bytes" in record and self.buffers is not None:
            record = {**record, "read_buffers": self.buffers.held_bytes}
        self.run.log({**record, "memory": peak_memory_bytes()})
        if "loss" in record:
            self.bar.advance(1, f"loss {record['loss']:.4f}")
        elif "validation" in record:
            found = record["validation"]
            self.bar.advance(0, f"epoch {record['epoch'] + 1}: {found['metric']} {found['value']:.4f}")

    def checkpoint(self, loop: TrainingLoop) -> None:
        self.run.checkpoint(loop)

    def better(self, loop: TrainingLoop) -> None:
        self.run.better(loop)
