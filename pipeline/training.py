"""Put a training run together: store, model, batches, validation, checkpoints."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..stages.data import Segments, StoreBatches, TargetTable, allocator
from ..stages.device import choose_device
from ..stages.evaluate import Evaluation, evaluate_store
from ..stages.methods.contract import Objective
from ..stages.model import StageTwo, StageTwoRecipe, build_stage_two
from ..stages.plugins import find, names
from ..stages.probe import logistic_regression_score
from ..stages.train import TrainingLoop, TrainSettings
from ..storage import ReadBuffers, Store, Stream
from ..storage.errors import RecipeError
from .again import extract_command, free_name
from .memory import peak_memory_bytes
from .progress import Progress, progress, size
from .run import Run, weights_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch

    from .recipe import Recipe


@dataclass(frozen=True)
class Training:
    """A recipe over a store, put together and found possible; nothing is written yet."""

    store: Store
    model: StageTwo
    objective: Objective
    batches: StoreBatches
    validation: StoreBatches | None
    loop: TrainingLoop

    @classmethod
    def of(cls, recipe: Recipe, store: Store) -> Training:
        """Every check is made here: methods and their options, taps, budget, splits. Raises RecipeError, ModelError,
        BudgetTooSmall, DataError.
        """
        device = choose_device(recipe.train.device)
        model = stage_two(recipe, store.producer, lambda name: store.file(f"weights/{name}")).to(device)
        _require_taps(store, model)
        objective = choose_objective(recipe, model, store.producer["task"]["kind"])
        buffers = ReadBuffers(int(recipe.data.read_budget), allocator(device))
        batches = store_batches(recipe, store, model, "train", device, buffers)
        validation = None
        if "validation" in store.plan.splits:
            validation = store_batches(recipe, store, model, "validation", device, buffers)
        loop = TrainingLoop(model, objective, batches, _settings(recipe))
        return cls(store, model, objective, batches, validation, loop)

    def run(self, run: Run) -> dict[str, Any]:
        """Train to the end, or from the newest checkpoint to the end; the result of the run."""
        loop, validation = self.loop, self.validation
        if run.resume(loop):
            print(f"going on from step {loop.at.step} of {loop.total_steps}", file=sys.stderr)
        with _progress_of(run, loop) as recorder:
            at = loop.run(recorder, self._validate_into(run))
        print(_reading_line([self.batches] if validation is None else [self.batches, validation]), file=sys.stderr)
        extra = self._check_of_probe()
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
            **extra,
        }

    def _validate_into(self, run: Run) -> Callable[[], tuple[float, dict[str, Any]]] | None:
        """What scores the validation split after an epoch, and keeps the answers of the best one in the run."""
        validation, task = self.validation, self.store.producer["task"]
        if validation is None:
            return None
        best: Evaluation | None = None

        def validate() -> tuple[float, dict[str, Any]]:
            nonlocal best
            candidates = _candidates(task, self.model)
            found = evaluate_store(self.model, self.objective, validation, task["metric"], candidates)
            if best is None or found.higher > best.higher:
                best = found
                run.save_predictions(self.store.examples("validation"), found)
            return found.higher, {"metric": found.metric, "value": found.value, **found.scores}

        return validate

    def _check_of_probe(self) -> dict[str, Any]:
        """Logistic regression on the features of a linear probe over a closed set of labels; nothing for other recipes."""
        head, validation = self.model.head, self.validation
        pooling = getattr(head, "pooling", None)
        if self.model.late is not None or pooling is None or head.output != "classes" or validation is None:
            return {}
        metric = self.store.producer["task"]["metric"]
        return {"logistic_regression": logistic_regression_score(self.model, pooling, self.batches, validation, metric)}


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


def choose_objective(recipe: Recipe, model: StageTwo, kind: str) -> Objective:
    """The objective that a recipe names, or the one that reads what the head gives. Raises RecipeError."""
    candidates = {name: find("objective", name) for name in names("objective")}
    fitting = [
        name
        for name, method in candidates.items()
        if issubclass(method, Objective) and kind in method.kinds and method.output == model.head.output
    ]
    name = recipe.objective.name or next(iter(fitting), None)
    if name not in fitting:
        found = ", ".join(fitting) or "none"
        raise RecipeError(
            f"objective.name: {name} does not read the {model.head.output} that this head gives for a {kind}; fitting: {found}"
        )
    method = find("objective", name)
    assert issubclass(method, Objective)
    return method.from_options(recipe.objective.options)


def store_batches(
    recipe: Recipe, store: Store, model: StageTwo, split: str, device: torch.device, buffers: ReadBuffers
) -> StoreBatches:
    """Batches of a split as the recipe cuts them; validation in written order."""
    training = split == "train"
    segments: Segments = "gold" if training else "all"
    answers = {name for name in model.reads if model.table.stream(name).tokens == "target"}
    stream = Stream(
        store,
        split,
        model.reads,
        batch_examples=recipe.data.batch_examples,
        batch_tokens=recipe.data.batch_tokens,
        window=recipe.data.window,
        buffers=buffers,
        seed=recipe.data.seed,
        shuffle=training,
        segments={name: segments if name in answers else "all" for name in model.reads},
        threads=recipe.data.threads,
    )
    targets = TargetTable(store.examples(split), store.producer["task"], model.head.output)
    return StoreBatches(stream, targets, model.reads, model.exit_stream, device, segments)


def _require_taps(store: Store, model: StageTwo) -> None:
    """Refuse a recipe that reads taps which the store lacks, with the command that adds them."""
    streams = next(iter(store.plan.splits.values())).streams
    lacking = {
        name: sorted(set(taps) - set(streams[name].taps)) for name, taps in model.reads.items() if name in streams
    }
    if any(lacking.values()):
        union = {name: sorted({*stream.taps, *model.reads.get(name, ())}) for name, stream in streams.items()}
        grammar = ";".join(f"{name}:{','.join(map(str, taps))}" for name, taps in union.items())
        names = ", ".join(f"{name} h{tap:02d}" for name, taps in lacking.items() for tap in taps)
        folder = store.root if isinstance(store.root, Path) else Path("cache")
        said = f"the recipe reads {names}, which the store does not hold"
        if store.encoding.calibrated:
            command = extract_command(store.producer, free_name(folder), taps=grammar)
            raise RecipeError(
                f"{said} and cannot take in: its {store.encoding.name} is calibrated for its own taps only; this makes "
                f"another store, of all of them: {command}"
            )
        command = extract_command(store.producer, folder, taps=grammar)
        where = "" if folder is store.root else " to its local original, which is then copied again"
        raise RecipeError(f"{said}; this adds it{where}, and runs nothing else again: {command}")


def _reading_line(read: list[StoreBatches]) -> str:
    """What reading took, for people."""
    reports = {batches.stream.split: batches.stream.report() for batches in read}
    kept = [split for split, report in reports.items() if report.mode == "memory"]
    waited = sum(report.waited_seconds for report in reports.values())
    return (
        f"read {size(sum(report.read_bytes for report in reports.values()))} from the store, waited {waited:.1f} s for it"
        + (f"; {' and '.join(kept)} stayed in memory after the first pass" if kept else "")
    )


def _candidates(task: Mapping[str, Any], model: StageTwo) -> int | None:
    """How many stored answers label scoring chooses from; see evaluate_store."""
    if model.head.output != "tokens":
        return None
    return 0 if task["target_ids"] is None else len(task["target_ids"])


def _settings(recipe: Recipe) -> TrainSettings:
    return TrainSettings(
        late_learning_rate=recipe.late.learning_rate, seed=recipe.seed, **recipe.train.model_dump(exclude={"device"})
    )


class _Recorder:
    """The run's folder, with progress beside it."""

    def __init__(self, run: Run, bar: Progress) -> None:
        self.run, self.bar = run, bar

    def log(self, record: Mapping[str, Any]) -> None:
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


@contextmanager
def _progress_of(run: Run, loop: TrainingLoop) -> Iterator[_Recorder]:
    with progress("train", loop.total_steps, "steps", loop.at.step) as bar:
        yield _Recorder(run, bar)
