"""The view model of a page, and its HTML: one file that asks for nothing from elsewhere and runs no script."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...storage.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Table:
    """A table with one heading a column; cells are text and come out as text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart of charts.py with its caption, and its numbers for those who cannot see it."""

    svg: Markup
    caption: str
    numbers: Table | None = None


@dataclass(frozen=True)
class Section:
    """A part of a page. `key` is its anchor."""

    key: str
    title: str
    notes: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    text: str = ""
    """Shown as it is, in fixed width."""


@dataclass(frozen=True)
class Page:
    """A page: what was asked, the answer in one line, and sections."""

    title: str
    question: str
    answer: str
    sections: Sequence[Section] = field(default=())


def render(page: Page) -> str:
    """The page as HTML. A content-security policy allows its own style sheet and nothing else."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (_TEMPLATES / "style.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return printable(environment.get_template("page.html").render(page=page, style=Markup(style), digest=digest))
