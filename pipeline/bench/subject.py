"""What is measured: the ways that are asked for, and the store, made small where there is none yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...storage.errors import UsageError
from ...storage.nearest import instead
from ..flow import extract
from ..recipe_sections import Extract
from .document import WAYS

if TYPE_CHECKING:
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


def small_store(recipe: Recipe, store: str | None, steps: int, out: Path) -> str | Path:
    """The place of the store: the one that is named, ./cache, or, of a model and data that are named, one of as many
    training rows as are measured. Raises UsageError where both are named, and what extraction raises.
    """
    asked = recipe.extract.model_dump(exclude_defaults=True)
    if recipe.extract.model is None and recipe.extract.data is None:
        if asked:
            raise UsageError(
                f"{', '.join(asked)}: options of an extraction, and a store that is there is measured as it is; name --model "
                "and --data too, and a small store is made, or leave them out"
            )
        return store or "./cache"
    if store is not None:
        raise UsageError(
            "--store names a store that is there, --model and --data make a small one: give one of the two"
        )
    limit = recipe.extract.limit or steps * (recipe.data.batch_examples or USUAL_BATCH)
    splits = asked.get("splits", "train")
    section = Extract.model_validate({**recipe.extract.model_dump(), "limit": limit, "splits": splits})
    root = out / "cache"
    extract(recipe.model_copy(update={"extract": section}), root)
    return root
