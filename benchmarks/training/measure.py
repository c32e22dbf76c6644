"""One way in this process: seconds of every step, peak memory, floating-point operations of one step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..storage import disk
from .ways import LORA_RANK, WAYS

if TYPE_CHECKING:
    from sherl_cache.pipeline.bench.way import TrainStep

    from .subject import Subject


def measure(subject: Subject, way: str, device: str) -> dict[str, Any]:
    """Train one way over the store's examples; the first step, which warms up, is not in `seconds`.

    stall: share of the time of these steps that was spent waiting for the store; flops: of one step, forward and backward,
    matrix products, convolutions and attention only, counted over a batch that is not timed.
    """
    from sherl_cache.pipeline.bench.examples import training_batches
    from sherl_cache.pipeline.bench.measure import measure as measured
    from sherl_cache.pipeline.bench.process import imported, put_together
    from sherl_cache.stages.device import choose_device
    from sherl_cache.storage import Store

    variant = WAYS[way]
    recipe, store = variant.recipe(subject, device), Store.open(subject.store)
    if variant.cold:
        disk.forget([path for path in subject.store.rglob("*") if path.is_file()])
    imports = imported(variant.way)
    batches = training_batches(store, recipe.data, subject.steps)
    trained = put_together(variant.way, recipe, store, batches, LORA_RANK)
    found = measured(trained, subject.steps - 1, choose_device(device), imports)
    return {
        "seconds": found.seconds,
        "stall": sum(found.wait_seconds) / sum(found.seconds),
        "flops": _flops(next(trained.steps)),
        "imports_bytes": imports,
        "net_bytes": found.net_bytes,
        "trained_parameters": found.trained_parameters,
    }


def _flops(step: TrainStep) -> int:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # written out as products, since the counter does not know the CPU's own attention kernel
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())
