"""What is wrong with a document that does not fit its schema, a line a problem, in the words of who wrote it."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from pydantic import BaseModel

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
            near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
            if (other := (other_names or {}).get(path[-1])) in known:
                near = [str(other)]
            prefix = ".".join([*path[:-1], ""]) if len(path) > 1 else ""
            hint = f"did you mean {prefix}{near[0]}?" if near else f"it has {', '.join(known)}"
            lines.append(f"unknown key {key}; {hint}")
        else:
            lines.append(f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, not {problem['input']!r}")
    return lines


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        inner = model.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
