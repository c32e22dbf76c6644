"""Put measured numbers into docs/storage.md: `python -m benchmarks.storage.page RESULT.json ...`.

Takes what `python -m benchmarks.storage --json RESULT.json` wrote, of one run or of some runs with different topics, and
replaces what stands between the page's two markers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "storage.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
HOLDS = {True: "yes", False: "**no**", None: "-"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="files written by --json")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    results = [json.loads(path.read_text("utf-8")) for path in options.results]
    text = options.page.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{options.page}: has no lines {BEGIN} and {END}, between which the numbers go")
    options.page.write_text(f"{before}{BEGIN}\n{measured(results)}\n{END}{after}", "utf-8")


def measured(results: list[dict[str, Any]]) -> str:
    """The table of promises, how often they hold, the peers with versions and settings, and the machine."""
    rows = [row for result in results for row in result["rows"]]
    held, failed = (sum(row["holds"] is answer for row in rows) for answer in (True, False))
    parts = [
        _table(
            ("what", "goal", "measured", "holds"),
            [(row["name"], row["goal"], row["measured"], HOLDS[row["holds"]]) for row in rows],
        ),
        f"{held} of {held + failed} goals hold.",
    ]
    settings = {
        (
            row["name"].partition(" of ")[2].partition(", ours")[0],
            row["details"]["version"],
            row["details"]["setting"],
        ): None
        for row in rows
        if "setting" in row["details"]
    }
    if settings:
        parts += ["Peers:", _table(("peer", "version", "read with"), list(settings))]
    return "\n\n".join([*parts, *_runs(results)])


def _runs(results: list[dict[str, Any]]) -> list[str]:
    """What was run, and where; topics of like runs on one machine together."""
    topics: dict[str, list[str]] = {}
    for result in results:
        run = result["run"]
        size = "quick (small data)" if run["quick"] else "full"
        machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
        topics.setdefault(f"Run: {size}, seed {run['seed']}; {machine}; topics", []).extend(run["topics"])
    return [f"{run} {', '.join(found)}." for run, found in topics.items()]


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    main()
