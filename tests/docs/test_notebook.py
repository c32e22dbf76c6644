"""The notebook of the documentation, run as a reader runs it; its picture shows the weights that the run recorded."""

import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from doc_pages import DOCS
from nbclient import NotebookClient
from warm_commands import Warm

from sherl_cache.pipeline.run import Run

NOTEBOOK = DOCS / "guide" / "notebook.ipynb"


def test_it_runs_and_its_picture_shows_the_runs_own_weights(
    warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([str(warm.bin), str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    (tmp_path / "work").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path / "work")}}).execute()
    shown = [
        "".join(output.get("data", {}).get("text/html", "")) or output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    ]
    said = [
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.get("name") == "stderr"
    ]
    assert all("tqdm" in text for text in said), "but for a library that asks for widgets, nothing complains"
    steps = [step for step in Run.open(tmp_path / "work" / "runs" / "sherl").metrics() if "layer_weights" in step]
    last = steps[-1]["layer_weights"]["encoder"]
    (told,) = [text for text in shown if re.match(r"h00  0\.\d+  \+- ", text)]
    assert [float(line.split()[1]) for line in told.splitlines()] == pytest.approx(last, abs=5e-4)
    (picture,) = [text for text in shown if "<svg" in text]
    drawn = re.findall(r'<polyline class="line l\d" points="([^"]+)"', picture)
    heights = [[float(point.split(",")[1]) for point in line.split()] for line in drawn]
    assert [len(line) for line in heights] == [len(steps)] * len(last)
    # heights are weights turned upside down and scaled: one pair of numbers fits all points
    values = [step["layer_weights"]["encoder"][place] for place in range(len(last)) for step in steps]
    ends = [line for line in zip(values, (height for line in heights for height in line), strict=True)]
    (low, bottom), (high, top) = min(ends), max(ends)
    assert bottom > top
    for value, height in ends:
        assert height == pytest.approx(bottom + (value - low) / (high - low) * (top - bottom), abs=0.2)


def test_it_is_kept_without_what_it_showed() -> None:
    for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
