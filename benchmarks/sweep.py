"""Eight runs from one read against one run: when reading is the limit, and when computing is.

    python -m benchmarks.sweep
    python -m benchmarks.sweep --quick         (a few steps, once)

A deep and narrow BERT with random weights (24 blocks, width 128), so that its 25 taps are many bytes for little work, and
texts of 128 tokens. Two cases over one store:

* `reading`: eight learning rates of a weighted sum of all taps under a linear head. The read budget is too small to keep
  anything, and the files are put out of the page cache before each timing, so that the first of two epochs comes from the disk.
* `computing`: eight learning rates of `sherl` over the last five taps, whose late block trains; everything stays in memory.

One run and eight runs take turns, each in a fresh process with an empty folder for its runs. Times count from the opened
store to the written table; the median of a case's timings is shown. `waits` is what of that was spent waiting for the disk.
`CPU` is the processor's time of the process, less what the same command takes once its runs are finished, which is imports:
where others use the machine, this ratio still holds, and it counts none of the waiting that runs share.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from sherl_cache.pipeline.progress import duration, size

from .commands import sherl_cache, show
from .storage.disk import forget, resident_share
from .training.subject import Subject

CASES = {
    "reading": ("fusion={name: weighted_sum}", "late.blocks=0", "dropout={}", "data.window=1"),
    "computing": ("fusion.taps='19,20,21,22,23'", "late.blocks=1", "dropout={}", "data.read_budget=2GiB"),
}
BATCH = 64
EPOCHS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--read-budget", default="256MiB", help="of the case `reading`")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--folder", type=Path, default=Path("sweep"))
    parser.add_argument("--quick", action="store_true", help="4 steps, one repeat")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.steps, options.repeats = 4, 1
    subject = Subject("encoder", "deep", 128, BATCH, options.steps, options.folder / str(options.steps))
    subject.make()
    root = subject.store
    results = {case: measure(case, root, options) for case in options.cases}
    rows = [
        [
            case,
            f"{found['one']['seconds']:.1f}",
            f"{found['many']['seconds']:.1f}",
            f"{found['ratio']:.2f}",
            f"{found['one']['cpu_seconds']:.1f}",
            f"{found['many']['cpu_seconds']:.1f}",
            f"{found['cpu_ratio']:.2f}",
            f"{found['one']['waited_seconds']:.1f}",
            f"{found['many']['waited_seconds']:.1f}",
            f"{size(found['one']['read_bytes'])} / {size(found['many']['read_bytes'])}",
            f"{size(found['one']['peak_memory_bytes'])} / {size(found['many']['peak_memory_bytes'])}",
        ]
        for case, found in results.items()
    ]
    stored = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    show(
        f"{options.runs} runs from one read against one run: {subject.name}, {EPOCHS} * {options.steps} steps, {size(stored)}",
        [
            "limit",
            "one, s",
            f"{options.runs}, s",
            "ratio",
            "one, CPU s",
            f"{options.runs}, CPU s",
            "ratio",
            "one waits",
            "all wait",
            "bytes read",
            "peak memory",
        ],
        rows,
    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def measure(case: str, root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of one run and of many, taken in turns."""
    rates = [f"{1e-3 * (number + 1):.3f}" for number in range(options.runs)]
    found: dict[str, list[dict[str, Any]]] = {"one": [], "many": []}
    for number in range(options.repeats):
        for name, chosen in (("one", rates[:1]), ("many", rates)):
            table = sweep(case, root, options, chosen)
            found[name].append(table)
            print(
                f"{case} {number + 1}/{options.repeats}: {len(chosen)} in {duration(table['seconds'])}", file=sys.stderr
            )
    medians = {name: min(tables, key=lambda t: abs(t["seconds"] - middle(tables))) for name, tables in found.items()}
    every = {name: [table["seconds"] for table in tables] for name, tables in found.items()}
    ratios = {
        name: medians["many"][key] / medians["one"][key]
        for name, key in (("ratio", "seconds"), ("cpu_ratio", "cpu_seconds"))
    }
    return {**medians, **ratios, "every": every}


def middle(tables: list[dict[str, Any]]) -> float:
    """The median of their seconds."""
    return float(statistics.median(table["seconds"] for table in tables))


def sweep(case: str, root: Path, options: argparse.Namespace, rates: list[str]) -> dict[str, Any]:
    """One timing: a sweep over these learning rates."""
    runs = options.folder / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    shards = [path for path in root.rglob("*") if path.is_file()]
    if case == "reading":
        forget(shards)
        if resident_share(shards) > 0.1:
            print("the page cache keeps the store whatever we ask: this timing is warm", file=sys.stderr)
    settings = (
        f"data.read_budget={options.read_budget}",
        *CASES[case],
        f"train.epochs={EPOCHS}",
        "train.checkpoint_steps=100000",
    )
    words = [word for setting in (*settings, f"data.batch_examples={BATCH}") for word in ("--set", setting)]
    grid = f"train.learning_rate={','.join(rates)}"
    asked = ("sweep", "--store", str(root), "--runs", str(runs), *words, "--grid", grid)
    begun = cpu_seconds()
    table = sherl_cache(*asked)
    trained = cpu_seconds()
    sherl_cache(*asked)
    net = (trained - begun) - (cpu_seconds() - trained)
    kept = ("seconds", "waited_seconds", "read_bytes", "peak_memory_bytes")
    return {"cpu_seconds": net, **{key: table[key] for key in kept}}


def cpu_seconds() -> float:
    """Of all commands so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
