"""A notebook as a page: its text, its code and, where it is run, what the code showed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def page(path: Path, run: bool) -> str:
    """The page as Markdown. run: in a folder of its own, which takes as long as the notebook does."""
    notebook = json.loads(path.read_text("utf-8"))
    if run:
        notebook = _run(path)
    parts = [part for cell in notebook["cells"] for part in _cell(cell)]
    return "\n\n".join([*parts, f"[This page as a notebook]({path.name})"]) + "\n"


def _run(path: Path) -> Any:
    import tempfile

    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, resources={"metadata": {"path": folder}}).execute()
    return notebook


def _cell(cell: Any) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    shown = [
        each for each in cell["outputs"] if each.get("name") != "stderr"
    ]  # libraries that name the machine's folders
    return [f"```python\n{source}\n```", *map(_output, shown)]


def _output(output: Any) -> str:
    """HTML as it is, in a part that scrolls by itself; else text."""
    data = output.get("data", {})
    if "text/html" in data:
        return f'<div class="output">\n{"".join(data["text/html"])}\n</div>'
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```"
