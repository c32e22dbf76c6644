"""Run the product's own commands, each in a process of its own, and read their `--json`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def sherl_cache(*arguments: str) -> dict[str, Any]:
    """Result of one command; its progress goes to our stderr. Raises SystemExit with the command's own code."""
    done = subprocess.run(
        [sys.executable, "-m", "sherl_cache.pipeline", *arguments, "--json"], stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        print(f"`sherl-cache {' '.join(arguments)}` ended with exit code {done.returncode}", file=sys.stderr)
        raise SystemExit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table: the first column to the left, the others to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
