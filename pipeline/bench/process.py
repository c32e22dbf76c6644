"""One way in this process: a Job on stdin, a Measured, Forward or Failure as JSON on stdout."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from ..cli import as_ours
from ..memory import peak_memory_bytes
from ..recipe import parse_recipe
from .document import Document, Failure, Forward, Job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...storage import Store
    from ..recipe import Recipe
    from .document import Measured
    from .examples import Examples
    from .way import Way


def main() -> None:
    job = Job.model_validate_json(sys.stdin.buffer.read())
    found: Document
    try:
        found = measured_forward(job) if job.way == "forward" else measured_way(job)
    except Exception as error:
        ours = as_ours(error)
        said = str(ours) if ours is not None else f"{type(error).__name__}: {' '.join(str(error).split())}"
        found = Failure(error=said, exit_code=1 if ours is None else ours.exit_code)
    print(json.dumps({"kind": type(found).__name__, **found.model_dump()}))


def measured_way(job: Job) -> Measured:
    """Raises what training raises."""
    from ...stages.device import choose_device
    from ...storage import Store
    from .examples import training_batches
    from .measure import measure

    recipe, store = parse_recipe(job.recipe, "the job"), Store.open(job.store)
    imports = imported(job.way)
    batches = training_batches(store, recipe.data, job.steps)
    way = put_together(job.way, recipe, store, batches, job.lora_rank)
    return measure(way, job.steps, choose_device(recipe.train.device), imports)


def put_together(name: str, recipe: Recipe, store: Store, batches: Sequence[Examples], lora_rank: int) -> Way:
    """A way of WAYS over these batches; stage two goes on reading behind them."""
    if name == "stage-two":
        from .stage_two import stage_two

        return stage_two(recipe, store)
    if name == "live":
        from .live import live

        return live(recipe, store, batches)
    from .whole import whole

    return whole(recipe, store, batches, lora_rank if name == "lora" else None)


def measured_forward(job: Job) -> Forward:
    """Raises what loading raises."""
    from ...stages.device import choose_device
    from ...storage import Store
    from .examples import training_batches
    from .forward import forward
    from .measure import peak

    recipe, store = parse_recipe(job.recipe, "the job"), Store.open(job.store)
    imports = imported(job.way)
    examples, seconds = forward(recipe, store, training_batches(store, recipe.data, job.steps))()
    _, net = peak(choose_device(recipe.train.device), imports)
    return Forward(examples=examples, seconds=seconds, net_bytes=net, imports_bytes=imports)


def imported(way: str) -> int:
    """Peak memory once all that ways import is there. Raises UsageError where a way needs a package that is not."""
    from . import forward, live, stage_two, whole  # noqa: F401

    if way == "lora":
        whole.require_peft()
    return peak_memory_bytes()


if __name__ == "__main__":
    main()
