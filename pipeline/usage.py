"""A command called wrongly, said in the voice of every other error."""

from __future__ import annotations

import click

from ..storage.nearest import instead
from .completion import attach


class Commands(click.Group):
    """A group that names the nearest command where there is none of a name, and whose commands complete."""

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        command = super().get_command(context, name)
        if command is not None:
            attach(command)
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(context, name) is None:
            hint = instead(name, self.list_commands(context), "there are")
            raise click.UsageError(f"no command {name!r}; {hint}", context)
        return super().resolve_command(context, args)


def explain_usage(error: click.ClickException) -> str:
    """What is wrong and where help is; the help itself for a group called without a command."""
    context = getattr(error, "ctx", None)
    if context is None:
        return f"error: {_plain(error.format_message())}"
    if type(error).__name__ == "NoArgsIsHelpError":
        return error.format_message()
    message = _plain(error.format_message())
    if isinstance(error, click.NoSuchOption):
        known = [name for option in context.command.get_params(context) for name in option.opts if name[:2] == "--"]
        message = f"no option {error.option_name}; {instead(error.option_name, known, 'there are')}"
    return f"error: {message}\n{context.command_path} --help shows how it is called"


def _plain(message: str) -> str:
    """Click's message as a part of a sentence."""
    return f"{message[:1].lower()}{message[1:]}".removesuffix(".")
