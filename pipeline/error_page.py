"""docs/errors.md, made of the error tree: each class with its exit code, cause and cure.

`python -m sherl_cache.pipeline.error_page > docs/errors.md` makes it again.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..storage import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

INTRODUCTION = """\
# Errors

A command that cannot do what it was asked ends with one message on stderr, which names the thing, what is wrong and what
would be right, and with an exit code of this page. `-v` adds the class and the traceback. From Python all of them
are `sherl_cache.storage.errors.SherlCacheError`.

This page is made from the code: `python -m sherl_cache.pipeline.error_page > docs/errors.md`.
"""

OTHERS = {
    0: "The command did what it was asked.",
    1: "A defect of sherl-cache, where the message begins with `internal error`: please report it with what -v shows.",
    130: "Ctrl-C. What was committed is kept; the same command goes on from there.",
}
"""Codes that a command ends with and no class of ours stands for."""

MEANINGS = {
    1: "internal",
    2: "usage",
    3: "a recipe, a model or data is invalid",
    4: "a store is incomplete, stale or not there",
    5: "damaged",
    6: "no space",
    7: "out of memory",
    75: "stopped or held up; the same command goes on later",
}
"""What the codes of the tree mean."""


@dataclass(frozen=True)
class Entry:
    """One class of the tree: the code its commands end with, and its docstring's two paragraphs on one line each."""

    code: int
    name: str
    parent: str
    cause: str
    cure: str


def tree(root: type[errors.SherlCacheError] = errors.SherlCacheError) -> Iterator[type[errors.SherlCacheError]]:
    """Every class of ours, parents first."""
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def entries() -> list[Entry]:
    """Every error, by exit code. Raises ValueError for a class whose docstring is not a cause and a cure."""
    found = []
    for each in tree():
        paragraphs = [" ".join(part.split()) for part in inspect.cleandoc(each.__doc__ or "").split("\n\n")]
        if len(paragraphs) != 2 or not all(paragraphs):
            raise ValueError(f"the docstring of {each.__name__} is not two paragraphs, its cause and its cure")
        parent = "" if each is errors.SherlCacheError else each.__bases__[0].__name__
        found.append(Entry(each.exit_code, each.__name__, parent, *paragraphs))
    return sorted(found, key=lambda entry: entry.code)


def page() -> str:
    """The page as Markdown."""
    known = entries()
    parts = [INTRODUCTION, "| exit code | meaning | errors |", "|---|---|---|"]
    codes = sorted({*OTHERS, *(entry.code for entry in known)})
    for code in codes:
        names = ", ".join(f"[{entry.name}](#{entry.name.lower()})" for entry in known if entry.code == code)
        meaning = MEANINGS.get(code) or OTHERS[code]
        parts.append(f"| {code} | {meaning} | {names} |")
    for code in codes:
        parts.append(f"\n## Exit code {code}")
        if code in OTHERS:
            parts.append(f"\n{OTHERS[code]}")
        for entry in known:
            if entry.code == code:
                kind = f"\n\nA kind of {entry.parent}." if entry.parent not in ("", "SherlCacheError") else ""
                parts.append(f"\n### {entry.name}\n\n**Cause.** {entry.cause}\n\n**Cure.** {entry.cure}{kind}")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
