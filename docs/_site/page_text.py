"""Text of the code as text of a page."""

from __future__ import annotations

import re
from typing import Final

SPECIAL: Final = re.compile(r"([\\*_\[\]<>|#])")


def escaped(text: str) -> str:
    """One line that shows `text` as it is, but for what stands in backticks: that is code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else SPECIAL.sub(r"\\\1", part) for part in parts)


def cell(text: str) -> str:
    """As `escaped`, for a cell of a table, where a bar would end it also within code."""
    return re.sub(r"(?<!\\)\|", r"\\|", escaped(text))


def code(text: str) -> str:
    """`text` as code in a cell; nothing for an empty one."""
    if not text:
        return ""
    return f"`` {text} ``".replace("|", r"\|") if "`" in text else f"`{text}`".replace("|", r"\|")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
