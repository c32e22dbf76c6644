"""The main job on the embedded model and data: extract once, train four recipes from the one store, compare.

    python -m benchmarks.demo          (or: make demo)

The data are builtin/reviews: synthetic sentences of a template generator, made so that bags of words do poorly.
Accuracies on them show that the machinery works; they say nothing about real reviews (for that: python -m
benchmarks.accuracy).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sherl_cache.pipeline.progress import duration, size

from .commands import sherl_cache, show

RECIPES = ("probe", "last", "sherl-paper", "sherl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where the store and the runs go")
    parser.add_argument("--limit", type=int, default=2500, help="first N training rows; the data set has 4,000")
    options = parser.parse_args()
    store = str(options.folder / "cache")
    limit = ("--limit", str(options.limit)) if options.limit else ()
    extracted = sherl_cache(
        "extract", "--model", "builtin/minilm", "--data", "builtin/reviews", "--store", store, *limit
    )
    rows = []
    for recipe in RECIPES:
        run = str(options.folder / "runs" / recipe)
        trained = sherl_cache("train", "--store", store, "--config", recipe, "--run", run)
        live = sherl_cache("eval", "--run", run)
        rows.append(
            [
                recipe,
                f"{live['value']:.3f}",
                f"{trained['trained_parameters']:,}",
                f"{trained['seconds']:.0f}",
                size(trained["peak_memory_bytes"]),
                size(extracted["bytes"]),
            ]
        )
    show(
        "builtin/minilm on builtin/reviews (synthetic), held-out sentences, live model on raw text",
        ["recipe", "accuracy", "trained parameters", "seconds", "peak memory", "store"],
        rows,
    )
    print(
        f"extract: {extracted['examples']:,} examples, {extracted['tokens']:,} tokens, {duration(extracted['seconds'])}, "
        f"peak memory {size(extracted['peak_memory_bytes'])}"
    )


if __name__ == "__main__":
    main()
