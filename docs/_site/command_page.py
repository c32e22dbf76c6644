"""The page of commands: every one with its options, read from the command line itself."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import click
from page_text import code, escaped, table

from sherl_cache.pipeline.cli import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

INTRODUCTION = """\
# Commands

Every command with its arguments and options, as `--help` says them. `-h` is short for `--help` everywhere.
How they end: [exit codes](../errors.md).
"""


def page() -> str:
    """The page as Markdown."""
    found = sorted(_commands(cli, "sherl-cache"))
    rows = [
        [f"[`{name}`](#{name.replace(' ', '-')})", escaped(command.get_short_help_str(200))] for name, command in found
    ]
    return (
        "\n".join([INTRODUCTION, table(["command", "what it does"], rows), *(_section(*each) for each in found)]) + "\n"
    )


def _commands(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that can be run, by the words that run it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix} {name}")
        elif command is not None:
            yield f"{prefix} {name}", command


def _section(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    usage = command.get_usage(context).removeprefix("Usage: ")
    rows = [[code(first), escaped(said)] for first, said in _parameters(command, context)]
    parts = [f"\n## {name}", f"```text\n{usage}\n```", *_said(command), table(["option", "what it says"], rows)]
    return "\n\n".join(parts)


def _said(command: click.Command) -> Iterator[str]:
    r"""Paragraphs of the help; those that click is told to leave alone (\b) are commands."""
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b"):
            yield f"```text\n{paragraph.removeprefix(chr(8)).strip()}\n```"
        else:
            yield escaped(paragraph)


def _parameters(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield record
