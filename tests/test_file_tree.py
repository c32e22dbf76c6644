"""The README's file tree against the files: each named once, none left out, none that is gone."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BY_FOLDER = ("commands", "fusion", "tuner", "head", "objective", "contract")  # the tree names these as folders
NAME = re.compile(r"\b\w+\.py\b")


def sections() -> dict[str, str]:
    """Text of each top folder in the tree, by the folder's name."""
    text = (ROOT / "README.md").read_text("utf-8").partition("## Where things are")[2].split("```")[1]
    parts = re.split(r"^(\w+)/", text, flags=re.MULTILINE)[1:]
    found: dict[str, str] = {}
    for name, part in zip(parts[::2], parts[1::2], strict=True):
        found[name] = found.get(name, "") + part
    return found


@pytest.mark.parametrize("room", ["pipeline", "stages", "storage"])
def test_the_tree_names_every_module_of_a_room_once(room: str) -> None:
    named = Counter(NAME.findall(sections()[room]))
    files = [path for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py"]
    there = Counter(path.name for path in files if path.parent.name not in BY_FOLDER)
    named.pop("__init__.py", None)
    named.pop("_shared.py", None)  # of the commands' folder
    assert named == there, f"left out: {sorted(there - named)}; gone or twice: {sorted(named - there)}"


def test_the_tree_names_every_page_of_the_docs_once() -> None:
    named = Counter(re.findall(r"[\w-]+\.(?:md|json|ipynb)\b", sections()["docs"]))
    files = (path for folder in ("docs", "docs/guide") for path in (ROOT / folder).iterdir())
    assert named == Counter(path.name for path in files if path.suffix in (".md", ".json", ".ipynb"))


def test_the_tree_names_every_benchmark() -> None:
    text = sections()["benchmarks"]
    for path in (ROOT / "benchmarks").iterdir():
        runs = path.is_dir() and (path / "__main__.py").is_file()
        runs |= path.suffix == ".py" and "__main__" in path.read_text("utf-8")
        assert not runs or re.search(rf"\b{path.stem}\b", text), path.name
