"""Put a training run together: store, model, batches, validation, checkpoints."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from torch import nn

from ..stages.build import StageTwoRecipe, build_stage_two
from ..stages.cached_block import read_first_block
from ..stages.compute import compile_fusion, require_precision
from ..stages.data import StoreBatches, allocator
from ..stages.device import choose_device
from ..stages.evaluate import Evaluation, Evaluator, evaluate
from ..stages.optimization import TrainSettings
from ..stages.probe import MOST_EXAMPLES, PooledStates, logistic_regression_score
from ..stages.ranks import ALONE
from ..stages.train import TrainingLoop
from ..storage import ReadBuffers, Store, Stream
from ..storage.errors import RecipeError
from . import stopping
from .first_values import set_first_values
from .memory import peak_memory_bytes
from .objectives import choose_objective, label_counts
from .progress import Progress, progress
from .reading import batches_of, open_stream, reading_line, require_taps, store_batches
from .run import Run, as_safetensors, weights_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from ..stages.model import StageTwo
    from ..stages.objectives import ObjectiveSum
    from ..stages.ranks import Ranks
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
    def of(cls, recipe: Recipe, store: Store, device: torch.device | None = None) -> Parts:
        """device: None is the recipe's. Raises RecipeError, ModelError."""
        device = device or choose_device(recipe.train.device)
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
    parts: Parts

    @classmethod
    def of(cls, recipe: Recipe, store: Store, ranks: Ranks | None = None) -> Training:
        """Every check is made here: methods and their options, taps, budget, splits. ranks: the processes that train
        together; None: this one alone, on the recipe's device. Raises RecipeError, ModelError, BudgetTooSmall, DataError.
        """
        parts = Parts.of(recipe, store, None if ranks is None else ranks.device)
        buffers = ReadBuffers(int(recipe.data.read_budget), allocator(parts.device))
        train, validation = open_streams(recipe.data, [parts], buffers, ranks or ALONE)
        return cls.over(parts, train, validation, ranks or ALONE)

    @classmethod
    def over(cls, parts: Parts, train: Stream, validation: Stream | None, ranks: Ranks = ALONE) -> Training:
        """The training over streams that read all that its model reads, and perhaps more; their slices, where there are
        several ranks.
        """
        recipe, model = parts.recipe, parts.model
        require_separate_rows(model, ranks)
        batches = batches_of(train, model, parts.device, recipe.train.micro_batch_examples)
        held_out = None if validation is None else batches_of(validation, model, parts.device, None)
        loop = TrainingLoop(
            model, parts.objective, batches, _settings(recipe), ranks, lambda: stopping.asked() is not None
        )
        return cls(parts.store, model, parts.objective, batches, held_out, loop, parts)

    def run(self, run: Run | None) -> dict[str, Any]:
        """Train to the end, or from the newest checkpoint to the end; the result of the run. run: None on a rank that writes
        nothing, whose result is empty.
        """
        loop, validation, ranks = self.loop, self.validation, self.loop.ranks
        if run is not None and run.resume(loop):
            print(f"going on from step {loop.at.step} of {loop.total_steps}", file=sys.stderr)
        elif run is not None:
            self.set_first_values(run)
        begin_alike(loop)
        shown = progress("train", loop.total_steps, "steps", loop.at.step) if ranks.first else nullcontext(Silent())
        with stopping.deferred(), shown as bar:
            loop.run(Recorder(run, bar, self.batches.stream.buffers), self._validate_into(run))
        if run is None:
            return {}
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
        candidates = _candidates(task, self.model)
        classes = len(task["labels"] or ())
        return Evaluator(
            self.model, self.objective, self.validation, task["metric"], candidates, self.loop.ranks, classes
        )

    def keep(self, run: Run | None, found: Evaluation) -> tuple[float, dict[str, Any]]:
        """Keep the answers of an epoch that is the best so far; (score, record) for the loop."""
        best = self.loop.at.best
        if run is not None and (best is None or found.higher > best):
            run.save_predictions(self.store.examples("validation"), found)
            run.save_layer_weights(self.loop.at.epoch, found, self.model.reads)
        return found.higher, {"metric": found.metric, "value": found.value, **found.scores}

    def set_first_values(self, run: Run) -> None:
        """Before the first step: see pipeline/first_values.py."""
        seed = self.loop.settings.seed
        set_first_values(run, self.store, self.model, self.objective, self._whole("train"), seed)

    def _whole(self, split: str) -> StoreBatches:
        """Whole batches of a split, for what one rank does alone: read by a stream of its own where the others hold slices,
        within as much memory again.
        """
        batches = self.batches if split == "train" else self.validation
        assert batches is not None
        if self.loop.ranks.alone:
            return batches
        buffers = ReadBuffers(int(self.parts.recipe.data.read_budget), allocator(self.parts.device))
        return store_batches(self.parts.recipe, self.store, self.model, split, self.parts.device, buffers)

    def _validate_into(self, run: Run | None) -> Callable[[], tuple[float, dict[str, Any]]] | None:
        """What scores the validation split after an epoch, and keeps the answers of the best one in the run."""
        if self.validation is None:
            return None
        return lambda: self.keep(run, evaluate(self.evaluator(), self.loop.asked))

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
        train = PooledStates(self.model, pooling, self._whole("train"), MOST_EXAMPLES)
        return train, PooledStates(self.model, pooling, self._whole("validation"), None)


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


def require_separate_rows(model: StageTwo, ranks: Ranks) -> None:
    """Refuse several ranks for a model that mixes the rows of a batch on their way. Raises RecipeError."""
    mixing = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if mixing and not ranks.alone:
        raise RecipeError(
            f"fusion.name: {model.recipe.fusion} normalises over the rows of a batch ({mixing[0]}), of which each of "
            f"{ranks.count} ranks sees a slice; train it in one process, or choose a form with layer_norm"
        )


def begin_alike(loop: TrainingLoop) -> None:
    """Let every rank stand where rank 0 does: its weights, its optimiser, its place."""
    from safetensors.torch import load

    ranks = loop.ranks
    if ranks.alone:
        return
    held = (loop.model.trainable_state_dict(), loop.optimizer_tensors())
    weights, optimizer = (ranks.share(as_safetensors(each)) for each in held)
    at = ranks.share_json(loop.at.to_json())
    if not ranks.first:
        loop.restore(load(weights), load(optimizer), at)


def open_streams(
    data: Data, parts: Sequence[Parts], buffers: ReadBuffers, ranks: Ranks = ALONE
) -> tuple[Stream, Stream | None]:
    """Train, and validation where the store holds one, with all that some models read. Raises BudgetTooSmall, DataError."""
    store, models = parts[0].store, [part.model for part in parts]
    train = open_stream(data, store, models, "train", buffers, ranks)
    held_out = "validation" in store.plan.splits
    return train, open_stream(data, store, models, "validation", buffers, ranks) if held_out else None


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
    """The run's folder, with progress beside it; no folder on a rank that writes nothing."""

    def __init__(self, run: Run | None, bar: Progress, buffers: ReadBuffers | None = None) -> None:
        self.run, self.bar, self.buffers = run, bar, buffers

    def log(self, record: Mapping[str, Any]) -> None:
        if "bytes" in record and self.buffers is not None:
            record = {**record, "read_buffers": self.buffers.held_bytes}
        if self.run is not None:
            self.run.log({**record, "memory": peak_memory_bytes()})
        if "loss" in record:
            self.bar.advance(1, f"loss {record['loss']:.4f}")
        elif "validation" in record:
            found = record["validation"]
            self.bar.advance(0, f"epoch {record['epoch'] + 1}: {found['metric']} {found['value']:.4f}")

    def checkpoint(self, loop: TrainingLoop) -> None:
        if self.run is not None:
            self.run.checkpoint(loop)

    def better(self, loop: TrainingLoop) -> None:
        if self.run is not None:
            self.run.better(loop)


class Silent:
    """Progress of a rank that another one speaks for."""

    def advance(self, amount: int, note: str = "") -> None:
        pass
