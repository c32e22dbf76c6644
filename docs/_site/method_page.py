"""The page of methods: every plug-in with its paper, options, what it reads and trains, as `sherl-cache methods` says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from page_text import code, escaped, table

from sherl_cache.pipeline.method_pages import describe_methods
from sherl_cache.stages.method_sizes import COMMON

if TYPE_CHECKING:
    from collections.abc import Iterator

INTRODUCTION = """\
# Methods

What can be put together in a [recipe](recipe.md): a fusion of the stored taps, a tuner of frozen late layers, a head, an
objective. `sherl-cache methods` lists them, `sherl-cache methods NAME` shows one; a new one is [one file](../add-a-method.md).
"""


def page() -> str:
    """The page as Markdown."""
    methods = describe_methods(None)["methods"]
    broken = [f"{method['name']}: {method['problem']}" for method in methods if method["problem"] is not None]
    if broken:
        raise ValueError(f"these cannot be imported: {'; '.join(broken)}")
    parts = [INTRODUCTION]
    for axis in dict.fromkeys(method["axis"] for method in methods):
        members = [method for method in methods if method["axis"] == axis]
        rows = [[f"[`{each['name']}`](#{_anchor(each)})", escaped(each["summary"])] for each in members]
        parts += [f"## {axis}", table([axis, "what it is"], rows), *map(_section, members)]
    return "\n\n".join(parts) + "\n"


def _anchor(method: dict[str, Any]) -> str:
    return f"{method['axis']}-{method['name']}"


def _section(method: dict[str, Any]) -> str:
    parts = [f"### {method['axis']}: {method['name']}", escaped(method["summary"]), *_about(method["about"])]
    trained = f" ({method['trained']:,} in {COMMON}, every option at its default)" if method["trained"] else ""
    facts = {"Source": method["source"], "Reads": method["reads"], "Trains": f"{method['trains']}{trained}"}
    parts.append("\n".join(f"* {key}: {escaped(said)}" for key, said in facts.items() if said))
    rows = [
        [code(name), code(option["type"]), _default(option), escaped(option["help"])]
        for name, option in method["options"].items()
    ]
    parts.append(table(["option", "type", "default", "what it says"], rows) if rows else "No options.")
    return "\n\n".join(filter(None, parts))


def _about(text: str) -> Iterator[str]:
    """Its paragraphs; formulas that their author set in are code."""
    for paragraph in filter(None, text.split("\n\n")):
        yield paragraph if any(line.startswith("    ") for line in paragraph.splitlines()) else escaped(paragraph)


def _default(option: dict[str, Any]) -> str:
    if option["required"]:
        return "required"
    return "" if option["default"] is None else code(f"{option['default']}")
