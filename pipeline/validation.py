"""What is wrong with a document that does not fit its schema, a line a problem, in the words of who wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel

from ..stages.plugins import meant_choice
from ..storage.nearest import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import ValidationError


def explain_validation(
    error: ValidationError, model: type[BaseModel], other_names: Mapping[str, str] | None = None
) -> list[str]:
    """One line a problem: the dotted key, what is wrong, what would be right.

    other_names: the right key by what it is called elsewhere.
    """
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        key = ".".join(path)
        if problem["type"] == "extra_forbidden":
            known = _fields_at(model, path[:-1])
            prefix = ".".join([*path[:-1], ""]) if len(path) > 1 else ""
            other = (other_names or {}).get(path[-1])
            near = other if other in known else nearest(path[-1], known)
            if near is None and not prefix:  # a key of a section, without its section
                near = nearest(key, dotted_keys(model))
            hint = f"it has {', '.join(known)}" if near is None else f"did you mean {prefix}{near}?"
            lines.append(f"unknown key {key}; {hint}")
        else:
            said = f"{problem['msg'][0].lower()}{problem['msg'][1:]}, not {problem['input']!r}"
            lines.append(f"{key}: {said}{meant_choice(problem)}")
    return lines


def dotted_keys(model: type[BaseModel]) -> list[str]:
    """Every key of a document as `section.key`; sections themselves, and keys beside them, as they are."""
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        found.append(name)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += [f"{name}.{key}" for key in dotted_keys(inner)]
    return found


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        inner = model.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
