"""Seconds a step and peak memory of stage two, live SHERL, LST, LoRA and full fine-tuning.

    python -m benchmarks.training                     (T5-base and BERT-base, SST-2 lengths and 128 tokens, batch 32)
    python -m benchmarks.training --quick             (small models, a minute or two)
    python -m benchmarks.training --only encoder-decoder --tokens sst2 --json found.json

Weights are random: they make no difference to time or memory. Each way runs in a process of its own, some rounds of all
ways in turn; a step is the median over rounds and steps. Ratios are of one run: a shared machine drifts. `limit` is
the ratio of counted floating-point operations, which is the ratio of times that equal speed of all products would
give; `of limit` is how much of it was reached.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from sherl_cache.pipeline.progress import size

from ..commands import show
from .measure import measure
from .subject import Subject
from .ways import WAYS

OURS = "stage two, warm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models, few steps, one round")
    parser.add_argument("--only", choices=("encoder-decoder", "encoder"))
    parser.add_argument("--tokens", choices=("sst2", "128"))
    parser.add_argument("--size", choices=("mini", "small", "base"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="batches a round; the first warms up, the last is counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where models and stores are kept; else a temporary folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.size, options.rounds, options.steps = options.size or "mini", 1, min(options.steps, 5)
    options.size = options.size or "base"
    if options.way:
        (subject,) = subjects(options, options.folder)
        print(json.dumps(measure(subject, options.way, options.device)))
        return
    with tempfile.TemporaryDirectory(prefix="sherl-cache-training-") as temporary:
        found = {}
        for subject in subjects(options, options.folder or Path(temporary)):
            subject.make()
            found[subject.name] = run(subject, options)
            table(subject.name, found[subject.name])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def subjects(options: argparse.Namespace, folder: Path) -> list[Subject]:
    """What is asked for."""
    kinds = (options.only,) if options.only else ("encoder-decoder", "encoder")
    tokens = {None: (None, 128), "sst2": (None,), "128": (128,)}[options.tokens]
    return [
        Subject(kind, options.size, count, options.batch, options.steps, folder) for kind in kinds for count in tokens
    ]


def run(subject: Subject, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every way, some rounds, each in a process of its own."""
    # an encoder-decoder has no pooling
    ways = [way for way in options.ways if "cls" not in way or subject.kind == "encoder"]
    rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way in ways:
            command = [
                *(sys.executable, "-m", "benchmarks.training", "--way", way, "--only", subject.kind),
                *("--tokens", str(subject.tokens or "sst2"), "--size", subject.size, "--batch", str(subject.batch)),
                *("--steps", str(subject.steps), "--folder", str(subject.folder), "--device", options.device),
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            rounds[way].append(json.loads(done.stdout))
    return {way: together(found) for way, found in rounds.items()}


def together(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One way's rounds as one record."""
    return {
        "seconds_a_step": median(seconds for found in rounds for seconds in found["seconds"]),
        "stall": median(found["stall"] for found in rounds),
        "net_bytes": max(found["net_bytes"] for found in rounds),
        "imports_bytes": max(found["imports_bytes"] for found in rounds),
        "flops": rounds[0]["flops"],
        "trained_parameters": rounds[0]["trained_parameters"],
        "rounds": rounds,
    }


def table(name: str, found: dict[str, dict[str, Any]]) -> None:
    """Print what was measured, each way beside stage two."""
    ours = found.get(OURS) or next(iter(found.values()))
    rows = []
    for way, record in found.items():
        times = record["seconds_a_step"] / ours["seconds_a_step"]
        limit = record["flops"] / ours["flops"]
        rows.append(
            [
                way,
                f"{record['seconds_a_step']:.3f}",
                f"{times:.2f}x",
                f"{record['flops'] / 1e9:.1f}",
                f"{limit:.2f}x",
                f"{times / limit:.2f}",
                f"{record['stall']:.1%}",
                size(record["net_bytes"]),
                f"{ours['net_bytes'] / record['net_bytes']:.3f}",
                f"{record['trained_parameters']:,}",
            ]
        )
    columns = ["way", "s/step", "times ours", "GFLOP", "limit", "of limit", "stall", "net peak", "ours / it", "trained"]
    show(name, columns, rows)


if __name__ == "__main__":
    main()
