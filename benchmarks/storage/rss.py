"""Memory: the peak of a process that streams, above what its imports take, against the budget that it was given."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from . import data
from .row import Row, Scale

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
ALLOWED = 64 * MIB

CHILD = """
import json, sys
import numpy as np
from sherl_cache.storage import Store, Stream
from sherl_cache.storage.errors import BudgetTooSmall

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

options = json.loads(sys.argv[1])
imports = peak()
store = Store.open(options["store"])
try:
    stream = Stream(store, "train", {"encoder": options["taps"]}, **options["stream"])
except BudgetTooSmall as error:
    print(json.dumps({"refused": str(error)}))
    sys.exit()
batches = options["batches"]
for epoch in range(2):
    for number, batch in enumerate(stream.epoch(epoch)):
        float(batch.streams["encoder"].taps[0, :1, :1].sum())
        if number + 1 == batches:
            break
print(json.dumps({"net": peak() - imports, "mode": stream.report().mode, "read": stream.read_bytes}))
"""


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Every setting is a process of its own; settings too small for their budget must say so and are drawn again."""
    sizes = [64 * MIB, 3200 * MIB] if not scale.quick else [64 * MIB]
    stores = {size: data.build(folder / str(size), size, unit_memory=64 * MIB) for size in sizes}
    draw = random.Random(scale.seed)
    wanted = scale.of(100, 2)
    measured: list[dict[str, Any]] = []
    refused = 0
    while len(measured) < wanted:
        size = draw.choice(sizes)
        largest = min(1024, size // MIB)  # the data is at least the budget
        budget = MIB * draw.choice([n for n in (64, 96, 128, 256, 512, 1024) if n <= largest])
        batch = draw.choice(
            [{"batch_examples": draw.choice([1, 8, 32, 100])}, {"batch_tokens": draw.choice([256, 2048])}]
        )
        options = {
            "store": str(stores[size].root),
            "times": size / budget,
            "taps": sorted(draw.sample(range(data.TAPS), draw.choice([1, 3, 13, 13]))),
            "batches": draw.choice([20, 400]),
            "stream": {
                **batch,
                "budget_bytes": budget,
                "window": draw.choice([1, 2, 4, 8, 16, 64]),
                "threads": draw.choice([0, 1, 2, 4]),
                "ranks": (ranks := draw.choice([1, 1, 2, 8])),
                "rank": draw.randrange(ranks),
                "seed": draw.randrange(100),
            },
        }
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(options)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{options}: {done.stderr}")
        found = json.loads(done.stdout)
        if "refused" in found:
            refused += 1
        else:
            measured.append({**options, **found, "over": found["net"] - budget})
    worst = max(one["over"] for one in measured)
    times = [one["times"] for one in measured]
    yield Row(
        f"peak RSS above imports, {wanted} random settings, data {min(times):.0f}x to {max(times):.0f}x the budget",
        "at most budget + 64 MiB, no exception",
        f"worst: budget {worst / MIB:+.0f} MiB; modes {sorted({one['mode'] for one in measured})}; "
        f"{refused} settings were refused as too small",
        worst <= ALLOWED,
        {"settings": measured},
    )
