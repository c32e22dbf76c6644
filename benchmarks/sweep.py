"""Eight runs from one read against one run: when reading is the limit, and when computing is.

    python -m benchmarks.sweep                 (MiniLM and reviews that come with the package, 8,000 examples)
    python -m benchmarks.sweep --quick

Two cases over one store of every tap. `reading`: eight learning rates of a weighted sum of all taps, as wide as the taps
go, under a linear head; the read budget is too small to keep anything, and the files are put out of the page cache before
each timing, so that every byte comes from the disk. `computing`: eight learning rates of `sherl`, whose late block trains.
One run and eight runs take turns, each a fresh process with an empty folder for its runs; the median of their `seconds`,
which count from opened store to written table. Only the ratio means something where a machine is shared.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from sherl_cache.pipeline.progress import duration, size

from .commands import sherl_cache, show
from .storage.disk import forget, resident_share

CASES = {
    "reading": ("fusion.name=weighted_sum", "late.blocks=0", "late.mode=frozen", "dropout={}"),
    "computing": (),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin/minilm")
    parser.add_argument("--data", default="builtin/reviews")
    parser.add_argument("--task")
    parser.add_argument("--limit", type=int, default=8000)
    parser.add_argument("--encoding", default="bfloat16")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--read-budget", default="96MiB")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--folder", type=Path, default=Path("sweep"))
    parser.add_argument("--quick", action="store_true", help="1,000 examples, one repeat")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.limit, options.repeats = 1000, 1
    root = options.folder / f"cache-{options.limit}-{options.encoding}"
    data = ("--data", options.data, *(("--task", options.task) if options.task else ()))
    asked = ("--model", options.model, *data, "--limit", str(options.limit), "--encoding", options.encoding)
    sherl_cache("extract", *asked, "--store", str(root))
    results = {case: measure(case, root, options) for case in options.cases}
    rows = [
        [
            case,
            f"{found['one']['seconds']:.1f}",
            f"{found['many']['seconds']:.1f}",
            f"{found['ratio']:.2f}",
            f"{found['one']['waited_seconds']:.1f}",
            f"{found['many']['waited_seconds']:.1f}",
            f"{size(found['one']['read_bytes'])} / {size(found['many']['read_bytes'])}",
            f"{size(found['one']['peak_memory_bytes'])} / {size(found['many']['peak_memory_bytes'])}",
        ]
        for case, found in results.items()
    ]
    show(
        f"{options.runs} runs from one read against one run: {options.model}, {options.limit:,} examples of {options.data}, "
        f"{options.encoding}, batch {options.batch}, one epoch",
        ["limit", "one, s", f"{options.runs}, s", "ratio", "one waits", "all wait", "bytes read", "peak memory"],
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
    return {**medians, "ratio": medians["many"]["seconds"] / medians["one"]["seconds"], "every": every}


def middle(tables: list[dict[str, Any]]) -> float:
    """The median of their seconds."""
    return statistics.median(table["seconds"] for table in tables)


def sweep(case: str, root: Path, options: argparse.Namespace, rates: list[str]) -> dict[str, Any]:
    """One timing: a sweep over these learning rates."""
    runs = options.folder / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    shards = [path for path in root.rglob("*") if path.is_file()]
    if case == "reading":
        forget(shards)
        if resident_share(shards) > 0.1:
            print("the page cache keeps the store whatever we ask: this timing is warm", file=sys.stderr)
    settings = (*CASES[case], "train.epochs=1", f"data.batch_examples={options.batch}")
    settings = (*settings, f"data.read_budget={options.read_budget}", "data.window=1", "train.checkpoint_steps=100000")
    words = [word for setting in settings for word in ("--set", setting)]
    grid = f"train.learning_rate={','.join(rates)}"
    table = sherl_cache("sweep", "--store", str(root), "--runs", str(runs), *words, "--grid", grid)
    return {key: table[key] for key in ("seconds", "waited_seconds", "read_bytes", "peak_memory_bytes")}


if __name__ == "__main__":
    main()
