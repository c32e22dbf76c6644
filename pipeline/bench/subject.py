"""What is measured: the ways that are asked for, and the store, made small where there is none yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...storage.errors import UsageError
from ...storage.nearest import instead
from ..flow import extract
from ..recipe_sections import Extract
from .document import WAYS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..recipe import Recipe

USUAL_BATCH = 32


def chosen_ways(text: str) -> list[str]:
    """`stage-two,lora` as names. Raises UsageError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in WAYS:
            raise UsageError(f"--ways {name}: no such way; {instead(name, WAYS, 'there are')}")
    if not names:
        raise UsageError(f"--ways names nothing; there are {', '.join(WAYS)}")
    return list(dict.fromkeys(names))


def choose_store(recipe: Recipe, store: str | None, asked: Sequence[str], steps: int, out: Path) -> str | Path:
    """The place of the store: the one that is named, ./cache, or, where the command line names a model and data, one that is
    made in `out` of as many training rows as are measured.

    asked: keys of the `extract` section that the command line sets. Raises UsageError where they do not go together, and what
    extraction raises.
    """
    if "model" not in asked and "data" not in asked:
        if asked:
            raise UsageError(
                f"{', '.join(f'extract.{name}' for name in asked)}: a store that is there is measured as it is; leave it out, or "
                "name --model and --data, of which a small store is made"
            )
        return store or "./cache"
    if store is not None:
        raise UsageError(
            "--store names a store that is there, --model and --data make a small one: give one of the two"
        )
    limit = recipe.extract.limit or steps * (recipe.data.batch_examples or USUAL_BATCH)
    splits = recipe.extract.splits if "splits" in asked else "train"
    section = Extract.model_validate({**recipe.extract.model_dump(), "limit": limit, "splits": splits})
    root = out / "cache"
    extract(recipe.model_copy(update={"extract": section}), root)
    return root
