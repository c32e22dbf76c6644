"""The store's promises, measured on this machine.

    python -m benchmarks.storage                 every topic
    python -m benchmarks.storage --quick         the same, small: about a minute
    python -m benchmarks.storage --only reading  one topic
    python -m benchmarks.storage.page FILE ...   the numbers of `--json FILE` into docs/storage.md

Ratios are taken inside one run. Nothing outside `--folder` is written.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from ..commands import show
from .row import Row, Scale

TOPICS = (
    "reading",
    "subset",
    "peers",
    "rss",
    "order",
    "resume",
    "kills",
    "power",
    "trace",
    "writers",
    "flips",
    "faults",
    "int8",
    "writing",
    "checking",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TOPICS, default=list(TOPICS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to write, on the disk to be measured; default: temporary")
    parser.add_argument("--json", type=Path, help="also write every number there")
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)

    scale = Scale(options.quick, options.seed)
    rows: list[Row] = []
    for topic in options.only:
        begun = time.perf_counter()
        module = importlib.import_module(f"{__package__}.{topic}")
        with tempfile.TemporaryDirectory(dir=options.folder, prefix=f"{topic}-") as folder:
            for row in module.rows(scale, Path(folder)):
                rows.append(row)
                print(f"{row.name}: {row.measured}", file=sys.stderr, flush=True)
        print(f"({topic}: {time.perf_counter() - begun:.0f} s)", file=sys.stderr, flush=True)
    show(
        f"sherl-cache storage, {'quick' if options.quick else 'full'}, seed {options.seed}",
        ["what", "goal", "measured", "holds"],
        [[row.name, row.goal, row.measured, {True: "yes", False: "NO", None: "-"}[row.holds]] for row in rows],
    )
    if options.json:
        run = {"quick": options.quick, "seed": options.seed, "topics": options.only}
        found = {"run": run, "machine": machine(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(found, indent=1), "utf-8")
    sys.exit(1 if any(row.holds is False for row in rows) else 0)


def machine() -> dict[str, str]:
    """What ran: versions, cores, system."""
    packages = ("sherl-cache", "zarr", "numcodecs", "numpy", "pyarrow", "google-crc32c")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "system": platform.platform(),
        "cores": str(os.cpu_count()),
    }


if __name__ == "__main__":
    main()
