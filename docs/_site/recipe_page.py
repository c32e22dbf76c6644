"""The page of recipes: every key with its type, default and meaning, from the schema that `sherl-cache recipe schema` prints."""

from __future__ import annotations

import json
from typing import Any

from page_text import code, escaped, table

from sherl_cache.pipeline.recipe import Recipe, shipped_recipes

INTRODUCTION = """\
# Recipes

A recipe is one YAML document that says a whole run. A key that is left out has its default, an unknown one is refused;
`--set train.epochs=3` sets one from the command line. `sherl-cache recipe show NAME` prints a recipe with every default,
`sherl-cache recipe schema` all keys as JSON schema. Options of a method stand beside its name, as in
`fusion: {name: sherl, bottleneck: 48}`: [methods](methods.md).
"""


def page() -> str:
    """The page as Markdown."""
    schema = Recipe.model_json_schema()
    own = {name: each for name, each in schema["properties"].items() if "$ref" not in each}
    sections = {name: each["$ref"].rpartition("/")[2] for name, each in schema["properties"].items() if name not in own}
    shipped = f"Recipes that come with the package: {', '.join(map(code, shipped_recipes()))}."
    parts = [INTRODUCTION, shipped, "## At the top", _keys(own)]
    for name, kind in sections.items():
        described = schema["$defs"][kind]
        parts += [f"## {name}", described["description"], _keys(described["properties"])]
    return "\n\n".join(parts) + "\n"


def _keys(properties: dict[str, dict[str, Any]]) -> str:
    rows = [
        [code(name), code(_type(each)), code(json.dumps(each["default"])), escaped(each.get("description", ""))]
        for name, each in properties.items()
    ]
    return table(["key", "type", "default", "what it says"], rows)


def _type(schema: dict[str, Any]) -> str:
    """A type in words of JSON, with its bounds."""
    if "anyOf" in schema:
        return " | ".join(map(_type, schema["anyOf"]))
    if "$ref" in schema:
        return "mapping"
    if "enum" in schema:
        return " | ".join(schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}" if "items" in schema else "list"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    said = " and ".join(f"{sign} {schema[key]}" for key, sign in bounds.items() if key in schema)
    return f"{schema['type']} {said}".strip()
