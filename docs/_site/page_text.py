"""Text of the code as text of a page."""

from __future__ import annotations

import re
from typing import Final

SPECIAL: Final = re.compile(r"([\\*_\[\]<>|#])")


def escaped(text: str) -> str:
    """One line, or a cell of a table, that shows `text` as it is, but for what stands in backticks: that is code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else SPECIAL.sub(r"\\\1", part) for part in parts)


def code(text: str) -> str:
    """`text` as code; nothing for an empty one."""
    return f"`` {text} ``" if "`" in text else f"`{text}`" if text else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
