"""The page on using storage alone: every block runs, in order, without torch, and prints what the page says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "use-storage-alone.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "=== end of block"


def test_every_block_runs_without_torch_and_prints_what_the_page_says(tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE.read_text("utf-8"))
    code = [text for kind, text in blocks if kind == "python"]
    expected: list[str] = []
    for kind, text in blocks:
        if kind == "python":
            expected.append("")
        else:
            expected[-1] = text
    assert len(code) >= 8
    script = tmp_path / "page.py"
    ending = "\nimport sys\nassert not {'torch', 'transformers'} & set(sys.modules)\n"
    script.write_text("".join(f"{text}\nprint({MARK!r})\n" for text in code) + ending, "utf-8")
    paths = os.pathsep.join(path for path in (os.environ.get("PYTHONPATH"), *map(os.path.abspath, sys.path)) if path)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(f"{MARK}\n")[:-1] == expected


def test_measured_numbers_replace_what_is_between_the_marks_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "storage.md"
    original = (ROOT / "docs" / "storage.md").read_text("utf-8")
    page.write_text(original, "utf-8")
    rows = [
        {"name": "a | b", "goal": ">= 2", "measured": "3", "holds": True, "details": {}},
        {
            "name": "examples/s of some peer, ours over it, warm",
            "goal": ">= 2",
            "measured": "1",
            "holds": False,
            "details": {"version": "9.9", "setting": "two workers"},
        },
    ]
    result = tmp_path / "result.json"
    run = {"quick": True, "seed": 4, "topics": ["peers"]}
    result.write_text(json.dumps({"run": run, "machine": {"numpy": "2.x"}, "rows": rows}), "utf-8")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"run": run | {"topics": ["rss"]}, "machine": {"numpy": "2.x"}, "rows": []}), "utf-8")
    for _ in range(2):  # the second time over the first
        command = [sys.executable, "-m", "benchmarks.storage.page", str(result), str(other), "--page", str(page)]
        subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    text = page.read_text("utf-8")
    begin, end = "<!-- measured: begin -->", "<!-- measured: end -->"
    assert text.split(begin)[0] == original.split(begin)[0]
    assert text.split(end)[1] == original.split(end)[1]
    lines = text.split(begin)[1].split(end)[0].splitlines()
    assert r"| a \| b | >= 2 | 3 | yes |" in lines
    assert "| some peer | 9.9 | two workers |" in lines
    assert "1 of 2 goals hold." in lines
    assert "Run: quick (small data), seed 4; numpy 2.x; topics peers, rss." in lines
