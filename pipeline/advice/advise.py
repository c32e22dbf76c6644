"""`advise`: measured, predicted, chosen, and said."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...stages.taps import format_taps
from ...storage.errors import DataError, RecipeError, UsageError
from ..again import extract_command, free_name
from ..cores import usable_cores
from ..memory import available_memory_bytes
from ..plan import reading_memory, step_memory
from ..preparing import extract_settings, preparing, report_data
from ..progress import duration
from ..space import free_bytes
from ..training import stage_two
from .choice import choose
from .measuring import Measured, measure
from .options import Here, Option, best, encodings_beside, make_options

if TYPE_CHECKING:
    from ...stages.preparation import Preparation
    from ..recipe import Recipe


def advice(recipe: Recipe, root: Path, epochs: int | None, runs: int, seconds: float, baseline: int) -> dict[str, Any]:
    """Whether to cache, with what, and what either way costs. `root`: where the store would lie; nothing is written there.

    baseline: resident bytes of a process that has imported everything and loaded nothing. Raises UsageError where the model
    is to be streamed.
    """
    if recipe.extract.stream_weights:
        raise UsageError(
            "advise compares a store with training on the whole model, which --stream-weights says does not fit in memory: "
            "cache; `sherl-cache plan --stream-weights` says what that costs"
        )
    begun, available = time.monotonic(), available_memory_bytes()
    recipe = with_late(recipe)
    count = recipe.train.epochs if epochs is None else epochs
    elsewhere = free_name(root)  # a store that is there already changes nothing of what is compared
    if elsewhere != root:
        print(f"{root} is there already; the advice is for a store that is made anew", file=sys.stderr)
    with preparing(extract_settings(recipe), recipe.train.device, elsewhere) as prepared:
        report_data(prepared)
        _require_measurable(recipe, prepared)
        print(f"measuring for about {duration(seconds)}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="sherl-cache-", ignore_cleanup_errors=True) as workspace:
            beside = encodings_beside(prepared.plan.encoding)
            measured = measure(recipe, prepared, root, seconds, Path(workspace), beside)
        here = Here(contention(prepared.loaded.device), free_bytes(root), available)
        options = make_options(recipe, prepared, measured, here)
        chosen = best(options, recipe, count, runs)
        memory = _memory(recipe, prepared, baseline)
        costs = chosen.costs
        found = choose(
            costs,
            count,
            runs,
            room=chosen.fits,
            live_fits=here.free_memory is None or memory["live"] - baseline <= here.free_memory,
        )
        changed = {} if chosen.taps == prepared.taps else {"taps": format_taps(chosen.taps)}
        return {
            "way": found.way,
            "reason": found.reason,
            "model": recipe.extract.model,
            "data": recipe.extract.data,
            "recipe": recipe.name,
            "store": str(root),
            "device": str(prepared.loaded.device),
            "epochs": count,
            "runs": runs,
            "examples": {name: split.examples for name, split in prepared.plan.splits.items()},
            "tokens": prepared.input_tokens(),
            "encoding": chosen.encoding,
            "taps": chosen.taps,
            "bytes": chosen.bytes,
            "command": extract_command(prepared.plan.producer, root, encoding=chosen.encoding, **changed),
            "seconds": {
                **{key: value for key, value in asdict(costs).items() if key != "first_epoch_again"},
                "cached": costs.cached(count, runs),
                "recomputed": costs.live(count, runs),
            },
            "break_even_epochs": costs.break_even_epochs(runs),
            "stays_in_memory": chosen.machine.stays,
            "stays_in_page_cache": chosen.machine.page_cache,
            "memory": {**memory, "available": here.free_memory},
            "free_bytes": here.free_disk,
            "fits": chosen.fits,
            "options": [_told(option, count, runs, chosen) for option in options],
            "measured": _speeds(measured),
            "seconds_taken": time.monotonic() - begun,
        }


def with_late(recipe: Recipe) -> Recipe:
    """The recipe with as many late blocks stored as it runs, where that is not said and the default would be too few."""
    from ...stages.prepare import DEFAULT_LATE

    if recipe.extract.late is not None or recipe.late.blocks <= DEFAULT_LATE:
        return recipe
    extract = recipe.extract.model_copy(update={"late": recipe.late.blocks})
    return recipe.model_copy(update={"extract": extract})


def contention(device: torch.device) -> float:
    """Seconds that a second of a thread beside the main one takes from it: none on a GPU, or where a core is left for it."""
    cores = usable_cores()
    return 0.0 if device.type != "cpu" or torch.get_num_threads() < cores else 1 / cores


def _require_measurable(recipe: Recipe, prepared: Preparation) -> None:
    """Raises DataError without a training split, RecipeError where the recipe reads taps that are not to be stored."""
    if "train" not in prepared.packed:
        raise DataError(
            f"{recipe.extract.data} has no training split, so that there is no epoch to compare; give data with one"
        )
    model = stage_two(recipe, prepared.plan.producer, lambda name: prepared.files[f"weights/{name}"])
    lacking = [
        f"{name} h{tap:02d}"
        for name, taps in model.reads.items()
        for tap in sorted(set(taps) - set(prepared.taps.get(name, ())))
    ]
    if lacking:
        raise RecipeError(
            f"the recipe {recipe.name} reads {', '.join(lacking)}, which --taps {recipe.extract.taps} leaves out; name them "
            f"too, or leave --taps out. All that it reads: {format_taps(dict(model.reads))}"
        )


def _memory(recipe: Recipe, prepared: Preparation, baseline: int) -> dict[str, int]:
    """About the bytes of a training process of either way, imports included."""
    step = step_memory(recipe, prepared)
    model = sum(each.numel() * each.element_size() for each in prepared.loaded.model.parameters())
    return {"train": baseline + reading_memory(recipe, prepared) + step, "live": baseline + model + step}


def _told(option: Option, epochs: int, runs: int, chosen: Option) -> dict[str, Any]:
    return {
        "encoding": option.encoding,
        "taps": option.taps,
        "bytes": option.bytes,
        "holds": option.holds,
        "fits": option.fits,
        "extract_seconds": option.costs.extract,
        "epoch_seconds": option.costs.epoch,
        "seconds": option.costs.cached(epochs, runs),
        "chosen": option is chosen,
    }


def _speeds(measured: Measured) -> dict[str, float | None]:
    """What was measured, a second's; None where there is nothing to measure."""
    training = measured.training
    found = {
        "forward_tokens": measured.forward,
        "cached_examples": training.cached_step,
        "live_examples": training.live_step,
        "cached_validation_examples": training.cached_validation,
        "live_validation_examples": training.live_validation,
        "read_bytes": measured.disk.read,
        "warm_bytes": training.warm,
        "write_bytes": measured.disk.write,
        "files": measured.disk.files,
    }
    return {name: None if value == float("inf") else value for name, value in found.items()}
