"""The Markdown of the repository as its parts: fenced blocks, headings with their anchors, links."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^( *)(`{3,})([\w-]*)\s*$")
MARK = re.compile(r"^ *<!-- needs: ([\w-]+) -->$")
HEADING = re.compile(r"^#{1,6} +(.*?)(?: +\{[^}]*\})? *#*$")
LINK = re.compile(r"\]\(([^()\s]+)(?: \"[^\"]*\")?\)")
IMAGE = re.compile(r"<(?:img|source|a)\b[^>]*?\b(?:src|srcset|href)=\"([^\"]+)\"")
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the line of its fence from 1, what it needs that a plain machine has not, its text."""

    language: str
    line: int
    needs: str | None
    text: str


def pages() -> list[Path]:
    """README and every page of docs/."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def split(page: Path) -> tuple[list[Block], list[tuple[int, str]]]:
    """Blocks of a page, and its other lines with their numbers. Raises ValueError for a fence that nothing closes."""
    blocks: list[Block] = []
    prose: list[tuple[int, str]] = []
    lines = page.read_text("utf-8").splitlines()
    number = 0
    while number < len(lines):
        opened = FENCE.match(lines[number])
        if opened is None:
            prose.append((number + 1, lines[number]))
            number += 1
            continue
        end = number + 1
        while end < len(lines) and lines[end].strip() != opened[2]:
            end += 1
        if end == len(lines):
            raise ValueError(f"{name(page)}:{number + 1}: nothing closes this fence")
        mark = MARK.match(lines[number - 1]) if number else None
        inside = (line.removeprefix(opened[1]) for line in lines[number + 1 : end])
        text = "".join(f"{line}\n" for line in inside)
        blocks.append(Block(opened[3], number + 1, mark[1] if mark else None, text))
        number = end + 1
    return blocks, prose


def anchor(heading: str) -> str:
    """The anchor that GitHub and the site give a heading: lower case, punctuation gone, blanks as hyphens."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, and the ids that it sets itself."""
    found: list[str] = []
    for _, line in split(page)[1]:
        heading = HEADING.match(line)
        if heading is not None:
            found.append(anchor(heading[1]))
        found += re.findall(r"<a (?:id|name)=\"([^\"]+)\"", line)
    repeated = [f"{each}-{found[:place].count(each)}" for place, each in enumerate(found) if each in found[:place]]
    return {*found, *repeated}


def links(page: Path) -> list[tuple[int, str]]:
    """What a page leads to, with the line that does."""
    found: list[tuple[int, str]] = []
    for number, line in split(page)[1]:
        bare = CODE.sub("", line)
        found += [(number, target) for target in (*LINK.findall(bare), *IMAGE.findall(bare))]
    return found
