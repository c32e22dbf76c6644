"""What a shell offers at the tab key: by the names of options and arguments, the same for every command.

`eval "$(_SHERL_CACHE_COMPLETE=bash_source sherl-cache)"` turns it on (zsh_source, fish_source). Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from collections.abc import Iterable

Completer: TypeAlias = Callable[[click.Context, click.Parameter, str], "list[CompletionItem[str]]"]


def words(*known: str) -> Completer:
    """A completer of a few words."""
    return lambda context, parameter, incomplete: _fitting(known, incomplete)


def folders(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Folders, by the shell itself."""
    return [CompletionItem(incomplete, type="dir")]


def recipes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Shipped recipes; files where none begins so."""
    from .recipe import shipped_recipes

    return _fitting(shipped_recipes(), incomplete) or [CompletionItem(incomplete, type="file")]


def models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Folders, and the model that comes with a package."""
    return [*_fitting(("builtin/minilm",), incomplete), CompletionItem(incomplete, type="dir")]


def data(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Files and folders, and the data that the package brings."""
    return [*_fitting(("builtin/reviews", "builtin/digits"), incomplete), CompletionItem(incomplete, type="file")]


def methods(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Methods of every axis, with their axes as help."""
    from ..stages import plugins

    axes: dict[str, str] = {}
    for axis in plugins.AXES:
        for name in plugins.names(axis):
            axes[name] = f"{axes[name]}, {axis}" if name in axes else axis
    return [CompletionItem(name, help=axis) for name, axis in sorted(axes.items()) if name.startswith(incomplete)]


def encodings(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Number formats of a store."""
    from ..storage import ENCODINGS

    return _fitting(ENCODINGS, incomplete)


def trackers(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Trackers, the last of several with a comma between."""
    from .reporting import tracker_names

    before, comma, last = incomplete.rpartition(",")
    return [CompletionItem(f"{before}{comma}{name}") for name in tracker_names() if name.startswith(last)]


def tasks(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Tasks whose files are known."""
    from ..stages.tasks import TASKS

    return _fitting(TASKS, incomplete)


def settings(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """`section.key=` of a recipe; behind the `=` the values of a key that can have only a few."""
    from .recipe import Recipe
    from .validation import dotted_keys

    key, separator, _ = incomplete.partition("=")
    if separator:
        return _fitting([f"{key}={value}" for value in _values(key)], incomplete)
    keys = dotted_keys(Recipe)
    return _fitting([f"{key}=" for key in keys if not any(other.startswith(f"{key}.") for other in keys)], incomplete)


def _values(key: str) -> list[str]:
    """The values of a recipe's key, where there are few."""
    from ..stages import plugins
    from .recipe import Recipe

    section, _, name = key.partition(".")
    if name == "name" and section in plugins.AXES:
        return list(plugins.names(section))
    model: Any = getattr(Recipe.model_fields.get(section), "annotation", None)
    field = getattr(model, "model_fields", {}).get(name)
    choices: list[str] = []
    for part in () if field is None else (field.annotation, *get_args(field.annotation)):
        if get_origin(part) is Literal:
            choices += [str(value) for value in get_args(part)]
        elif part is bool:
            choices += ["true", "false"]
    return choices


def _fitting(known: Iterable[str], incomplete: str) -> list[CompletionItem[str]]:
    return [CompletionItem(each) for each in known if each.startswith(incomplete)]


BY_NAME: dict[str, Completer] = {
    "config": recipes,
    "configs": recipes,
    "data": data,
    "device": words("auto", "cpu", "cuda", "mps"),
    "encoding": encodings,
    "grid": settings,
    "methods name": methods,
    "model": models,
    "overrides": settings,
    "precision": words("float64", "float32", "float16", "bfloat16"),
    "report_to": trackers,
    "show name": recipes,
    "splits": words("official", "paper", "holdout:", "train"),
    "store": folders,
    "task": tasks,
}
"""Completers by the name of a parameter, or by those of its command and its own."""


def attach(command: click.Command) -> None:
    """Give the parameters of a command their completers; those with a type of their own keep what the type offers."""
    for parameter in command.params:
        found = BY_NAME.get(f"{command.name} {parameter.name}") or BY_NAME.get(parameter.name or "")
        if found is not None and type(parameter.type) is type(click.STRING):
            # click's own argument for this, shell_complete, would have to stand at each of them
            parameter.shell_complete = partial(_of, found, parameter)  # type: ignore[method-assign]


def _of(
    found: Completer, parameter: click.Parameter, context: click.Context, incomplete: str
) -> list[CompletionItem[str]]:
    return found(context, parameter, incomplete)
