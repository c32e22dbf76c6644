"""`sherl-cache recipe show|schema`: the recipe a command would run, and every key there is."""

from __future__ import annotations

import json

import click

from ..usage import Commands
from ._shared import emit, output_options, recipe_options


@click.group("recipe", cls=Commands)
def command() -> None:
    """Show a resolved recipe, or the schema of all recipes."""


@command.command("show")
@click.argument("name", required=False)
@recipe_options
@output_options
def show(name: str | None, config: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print a recipe with every default filled in.

    \b
    sherl-cache recipe show sherl --set train.epochs=3
    """
    from ..recipe import load_recipe

    recipe = load_recipe(name or config, overrides)
    emit(recipe.model_dump(mode="json"), as_json, [recipe.to_yaml().rstrip()])


@command.command("schema")
@output_options
def schema(as_json: bool) -> None:
    """Print the JSON schema of recipes: every key, its type, default and meaning."""
    from ..recipe import Recipe

    document = Recipe.model_json_schema()
    emit(document, as_json, [json.dumps(document, indent=1)])
