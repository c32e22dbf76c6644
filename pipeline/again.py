"""The extract command that a store was made with, the settings behind it, and where another store or run can go."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from ..storage.errors import StoreNotUsable
from .recipe_sections import Extract

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FLAGLESS = ("seed", "chunk_bytes", "data_revision")


def stored_settings(producer: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the `extract` section that a store was made with, last grown with. Raises StoreNotUsable."""
    known = producer.get("extract")
    if not isinstance(known, dict):
        raise StoreNotUsable(
            "the store does not say how it was made (it is from an older version): give --model, --data and every other "
            "option that it was extracted with"
        )
    return {name: value for name, value in known.items() if name in Extract.model_fields}


def extract_command(producer: Mapping[str, Any], root: Path, **changed: Any) -> str:
    """The extract command of a store, with some settings changed; to be pasted into a shell."""
    if not isinstance(producer.get("extract"), dict):
        settings = {"model": producer["model"]["name"], "data": producer["data"]["name"]}
    else:
        settings = stored_settings(producer)
    words = ["sherl-cache", "extract"]
    for name, field in Extract.model_fields.items():
        value = changed.get(name, settings.get(name, field.default))
        values = value if isinstance(value, list | tuple) else [value]
        if list(values) in ([None], []) or value == field.default:
            continue
        if name in _FLAGLESS:
            words += [word for item in values for word in ("--set", f"extract.{name}={item}")]
        else:
            if value is True:
                words.append("--" + name.replace("_", "-"))
                continue
            flag = "--" + name.removesuffix("s" if name == "text_columns" else "").replace("_", "-")
            words += [word for item in values for word in (flag, str(item))]
    return shlex.join([*words, "--store", str(root)])


def free_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that is not there."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate
