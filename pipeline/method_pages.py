"""What `sherl-cache methods` says of the plug-ins, as JSON and as lines for people."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from ..storage.errors import RecipeError, UsageError
from ..storage.nearest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDTH = 80
"""Most characters of a line."""
OURS = "sherl-cache"


def describe_methods(name: str | None) -> dict[str, Any]:
    """The plug-ins of every axis, or those called `name`; one that cannot be imported comes with its problem.

    Raises UsageError where there is none of that name.
    """
    from ..stages import plugins

    known = [(axis, found) for axis in plugins.AXES for found in plugins.names(axis)]
    chosen = [pair for pair in known if name in (None, pair[1])]
    if not chosen:
        hint = did_you_mean(name, [found for _, found in known])
        raise UsageError(f"no method {name!r}{hint}; `sherl-cache methods` lists them")
    return {"methods": [_described(axis, found) for axis, found in chosen]}


def _described(axis: str, name: str) -> dict[str, Any]:
    from ..stages import plugins
    from ..stages.method_sizes import sizing

    try:
        item, size = plugins.describe(axis, name), sizing(axis, name)
    except RecipeError as error:
        empty = dict.fromkeys(("summary", "about", "source", "trains", "reads"), "")
        said: dict[str, Any] = {
            "package": plugins.package_of(axis, name),
            "trained": None,
            "problem": str(error),
            "options": {},
        }
        return {"axis": axis, "name": name, **empty, **said}
    return {
        "axis": axis,
        "name": name,
        "summary": item.summary,
        "about": item.about,
        "source": item.source,
        "package": item.package,
        "trains": item.trains,
        "reads": size.reads,
        "trained": size.trained,
        "problem": None,
        "options": {
            option.name: {
                "default": option.default,
                "required": option.required,
                "type": option.type,
                "help": option.help,
            }
            for option in item.options
        },
    }


def list_lines(methods: list[Mapping[str, Any]]) -> list[str]:
    """One entry a method, by axis."""
    lines: list[str] = []
    widest = max(len(method["name"]) for method in methods)
    for axis in dict.fromkeys(method["axis"] for method in methods):
        lines += ["", axis] if lines else [axis]
        for method in methods:
            if method["axis"] == axis:
                said = method["summary"] if method["problem"] is None else f"cannot be used: {method['problem']}"
                if method["package"] != OURS:
                    said += f" [{method['package']}]"
                lines += _hanging(f"  {method['name']:<{widest}}  ", said)
    return [*lines, "", "sherl-cache methods NAME shows one with its options"]


def page_lines(method: Mapping[str, Any]) -> list[str]:
    """One method: what it is, what it reads and trains, and its options."""
    from ..stages.method_sizes import COMMON

    head = f"{method['axis']}: {{name: {method['name']}}}"
    lines = [head if method["package"] == OURS else f"{head}, of the package {method['package']}"]
    if method["problem"] is not None:
        return [*lines, *_hanging("", f"cannot be used: {method['problem']}")]
    lines += ["", *_hanging("", method["summary"])]
    for paragraph in filter(None, method["about"].split("\n\n")):
        lines += ["", *_paragraph(paragraph)]
    trained = f"{method['trained']:,} in {COMMON}, every option at its default" if method["trained"] else ""
    facts = {"source": method["source"], "reads": method["reads"], "trains": method["trains"], "such as": trained}
    lines.append("")
    for key, said in facts.items():
        if said:
            lines += _hanging(f"{key:<8} ", said)
    lines += ["", "options" if method["options"] else "no options"]
    for key, option in method["options"].items():
        value = "required" if option["required"] else "" if option["default"] is None else f"{option['default']}"
        lines += _hanging("  ", f"{key}: {option['type']}" + (f" = {value}" if value else ""), "      ")
        lines += _hanging("      ", option["help"])
    return lines


def _hanging(first: str, text: str, then: str | None = None) -> list[str]:
    """Lines of `text` behind `first`, each further one as far in, or behind `then`."""
    rest = " " * len(first) if then is None else then
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    ) or [first.rstrip()]


def _paragraph(text: str) -> list[str]:
    """A paragraph of a docstring: prose is filled anew, formulas set in by their author stay as they are."""
    if any(line.startswith("    ") for line in text.splitlines()):
        return text.splitlines()
    return _hanging("", text)
