"""Extraction on dask workers: scheduling, speed, kills, and a large cluster that is simulated.

    python -m benchmarks.cluster
    python -m benchmarks.cluster --only kills
    python -m benchmarks.cluster --quick

* `overhead`: empty units through the whole path (claims, leases, scheduler, two worker processes); the driver's seconds a unit,
  and their share of the time that a real unit takes.
* `speed`: tokens a second of 1 and 2 workers against as many plain processes, once everybody has the model.
* `kills`: 3 workers, one of which is killed again and again, 2 to 10 s after it had loaded the model; every store must have the
  digest of the lone run. Rework counts tasks that were begun beyond one a unit and did not find their unit committed.
* `scale`: 256 workers and plans up to 10 TB. Plan, table, claims, leases, scheduler, receipts and manifest are real; a unit is a
  pause and files of the right size without content. Peak memory is the growth of the process that holds driver, scheduler
  and the 256 workers, since they began.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from . import kills, overhead, scale, speed

TOPICS = {"overhead": overhead, "speed": speed, "kills": kills, "scale": scale}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TOPICS, default=list(TOPICS))
    parser.add_argument("--folder", type=Path, default=Path("cluster-benchmark"), help="removed afterwards")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for topic in options.only:
        folder = options.folder / topic
        folder.mkdir(parents=True)
        try:
            results[topic] = TOPICS[topic].measure(folder, options.quick, options.seed)
        finally:
            shutil.rmtree(options.folder, ignore_errors=True)
        print(f"{topic}:")
        for line in TOPICS[topic].lines(results[topic]):
            print(f"  {line}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(0 if all(TOPICS[topic].holds(found) for topic, found in results.items()) else 1)


if __name__ == "__main__":
    main()
