"""One way in this process: seconds of every step, peak memory, floating-point operations of one step."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sherl_cache.pipeline.memory import peak_memory_bytes

from ..storage import disk
from .ways import WAYS

if TYPE_CHECKING:
    from .subject import Subject


def measure(subject: Subject, way: str, device_name: str) -> dict[str, Any]:
    """Train one way over the store's examples; the first step, which warms up, is not in `seconds`.

    stall: share of the time of these steps that was spent waiting for the store; flops: of one step, forward and backward,
    matrix products, convolutions and attention only, counted over a batch that is not timed.
    """
    import torch

    from sherl_cache.pipeline import training  # noqa: F401  (what every way imports)

    if "LoRA" in way:
        import peft  # noqa: F401
    device = torch.device(device_name)
    if "cold" in way:
        disk.forget([path for path in subject.store.rglob("*") if path.is_file()])
    imports = peak_memory_bytes()
    optimizer: torch.optim.Optimizer | None = None
    seconds: list[float] = []
    waited = 0.0
    stalls: list[float] = []
    flops = trained = 0
    begun = time.perf_counter()
    for number, (parameters, loss, batches) in enumerate(WAYS[way](subject, device)):
        if optimizer is None:
            optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
            trained = sum(parameter.numel() for parameter in parameters)
        if number == subject.steps - 1:
            peak = _peak(device, imports)
            flops = _flops(loss)
            break
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        stall = 0.0 if batches is None else batches.waited_seconds
        if number:
            seconds.append(now - begun)
            stalls.append(stall - waited)
        begun, waited = now, stall
    return {
        "seconds": seconds,
        "stall": sum(stalls) / sum(seconds),
        "flops": flops,
        "imports_bytes": imports,
        "net_bytes": peak,
        "trained_parameters": trained,
    }


def _peak(device: Any, imports: int) -> int:
    """Bytes above the imports' own; on a GPU, the allocator's peak."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes() - imports


def _flops(loss: Any) -> int:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # written out as products, since the counter does not know the CPU's own attention kernel
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss().backward()
    return int(counter.get_total_flops())
