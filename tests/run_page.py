"""Runs the blocks of a page in the folder it is started in: `python run_page.py PAGE BLOCKS.json`.

Python blocks are one script: each goes on from the names of those before it. Bash blocks are one terminal: each goes on in
the folder and with the exported variables that the one before it left.
"""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from typing import Any


def main(page: str, blocks: list[dict[str, Any]]) -> int:
    """The exit code: 0, or 1 behind a line that says which block failed."""
    names: dict[str, Any] = {"__name__": "__main__"}
    sys.path.insert(0, "")  # modules of the folder, as where lines are typed
    for block in blocks:
        place = f"{page}:{block['line']}"
        try:
            if block["language"] == "python":
                # empty lines before it, so that a traceback has the lines of the page
                exec(compile("\n" * block["line"] + block["text"], page, "exec"), names)
            else:
                in_terminal(block["text"])
        except BaseException as error:
            if not isinstance(error, subprocess.CalledProcessError):
                traceback.print_exc()
            print(f"{place}: this block failed: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
    return 0


def in_terminal(text: str) -> None:
    """Run a block, and take over the folder and the variables that it ends with. Raises CalledProcessError."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as script, tempfile.NamedTemporaryFile("r") as left:
        script.write(text)
        script.flush()
        words = ["bash", "-euo", "pipefail", "-c", 'source "$1"; env -0 > "$2"', "bash", script.name, left.name]
        subprocess.run(words, check=True)
        variables = dict(each.split("=", 1) for each in left.read().split("\0") if each)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(os.environ["PWD"])


def entry() -> None:
    with open(sys.argv[2], encoding="utf-8") as file:
        blocks = json.load(file)
    sys.exit(main(sys.argv[1], blocks))


if __name__ == "__main__":
    entry()
