"""Several recipes out of few words: files, seeds and a grid of values; and whether one read can serve them."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from ..storage.errors import RecipeError
from .recipe import load_recipe, with_exponents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .recipe import Recipe

SHARED: Final = (
    "data.seed",
    "data.batch_examples",
    "data.batch_tokens",
    "data.window",
    "train.epochs",
    "train.device",
)
"""Keys that recipes must agree in to learn from one read."""


@dataclass(frozen=True)
class Variant:
    """One run of a sweep: its recipe, where that came from, and what the grid changed in it."""

    recipe: Recipe
    config: str
    changed: dict[str, Any]

    @property
    def label(self) -> str:
        """`sherl train.learning_rate=0.001 seed=1`."""
        return " ".join([self.config, *(f"{key}={value}" for key, value in self.changed.items())])


def variants(
    configs: Sequence[str], overrides: Sequence[str], seeds: str | None, grid: Sequence[str], **flags: Any
) -> list[Variant]:
    """Every config with every combination of the grid and every seed.

    overrides: `key=value`, for all of them; seeds: `0,1,2`, values of the key `seed`; grid: `key=value,value`, each value
    as YAML; flags: as load_recipe takes them. Raises RecipeError.
    """
    axes = [_axis(text, "--grid") for text in grid]
    if seeds is not None:
        axes.append(_axis(f"seed={seeds}", "--seeds"))
    keys = [key for key, _ in axes]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise RecipeError(f"--grid {twice[0]}: given twice; list all of its values in one --grid")
    found = []
    for config in configs or ("sherl",):
        for values in itertools.product(*(values for _, values in axes)):
            changed = dict(zip(keys, values, strict=True))
            words = [f"{key}={json.dumps(value)}" for key, value in changed.items()]  # JSON is YAML
            found.append(Variant(load_recipe(config, (*overrides, *words), **flags), config, changed))
    return found


def require_one_read(found: Sequence[Variant]) -> None:
    """Raise RecipeError, with every difference, where one order of batches cannot serve all of them."""
    differences = []
    for key in SHARED:
        section, name = key.split(".")
        values = [(getattr(getattr(variant.recipe, section), name), variant.label) for variant in found]
        other = next(((value, label) for value, label in values if value != values[0][0]), None)
        if other is not None:
            differences.append(f"{key} is {values[0][0]} in {values[0][1]} and {other[0]} in {other[1]}")
    if differences:
        raise RecipeError(
            f"these recipes cannot share one read: {'; '.join(differences)}. Give them the same values (--set "
            f"{differences[0].split(' ')[0]}=...), or sweep over each value by itself"
        )


def _axis(text: str, option: str) -> tuple[str, list[Any]]:
    """Key and values of `key=value,value`."""
    key, separator, listed = text.partition("=")
    try:
        values = with_exponents(yaml.safe_load(f"[{listed}]")) if separator else []
    except yaml.YAMLError:
        values = []
    if not key.strip() or not values:
        raise RecipeError(
            f"{option} {text!r}: give a key and its values, as in --grid train.learning_rate=1e-3,3e-3 --seeds 0,1,2"
        )
    return key.strip(), values
