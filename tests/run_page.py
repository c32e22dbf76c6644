"""Runs the blocks of a page in the folder it is started in: `python run_page.py PAGE BLOCKS.json`.

Python blocks are one script: each goes on from the names of those before it. A bash block is a shell of its own.
"""

import json
import subprocess
import sys
import traceback
from typing import Any


def main(page: str, blocks: list[dict[str, Any]]) -> int:
    """The exit code: 0, or 1 behind a line that says which block failed."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        place = f"{page}:{block['line']}"
        try:
            if block["language"] == "python":
                # empty lines before it, so that a traceback has the lines of the page
                exec(compile("\n" * block["line"] + block["text"], page, "exec"), names)
            else:
                subprocess.run(["bash", "-euo", "pipefail", "-c", block["text"]], check=True)
        except BaseException as error:
            if not isinstance(error, subprocess.CalledProcessError):
                traceback.print_exc()
            print(f"{place}: this block failed: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
    return 0


def entry() -> None:
    with open(sys.argv[2], encoding="utf-8") as file:
        blocks = json.load(file)
    sys.exit(main(sys.argv[1], blocks))


if __name__ == "__main__":
    entry()
