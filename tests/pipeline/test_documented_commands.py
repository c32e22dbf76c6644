"""What the commands are, read from the command line itself, against what the documents say of them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import jsonschema
import pytest

from sherl_cache.pipeline.cli import cli

ROOT = Path(__file__).parents[2]
SCHEMAS = json.loads((ROOT / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that can be run, by the words that run it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


COMMANDS = dict(commands(cli))


def test_every_command_has_json_and_a_schema_of_it() -> None:
    with_json = {name for name, command in COMMANDS.items() if "--json" in {o for p in command.params for o in p.opts}}
    assert with_json == set(COMMANDS) == set(SCHEMAS)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_schema_is_one_and_says_which_keys_there_are(name: str) -> None:
    schema = SCHEMAS[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    item = schema.get("items", schema)
    for inner in item.get("anyOf", [item]):
        if not name.startswith("recipe "):  # a recipe has a schema of its own, which `recipe schema` prints
            assert inner["additionalProperties"] is False
            assert set(inner["required"]) <= set(inner["properties"])


def test_the_table_of_the_readme_names_every_command_and_no_other() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    table = text.partition("## What you can do")[2].partition("Every command takes")[0]
    firsts = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    assert {name for first in firsts for name in re.findall(r"`([^`]+)`", first)} == set(COMMANDS)
