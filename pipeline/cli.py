"""`sherl-cache`: finds the command, runs it, and turns every error into one message and one exit code.

A command is one file in commands/, found by its name and imported only when it is called or listed; command bodies
import torch inside the function, so that `sherl-cache --help` stays quick.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import pkgutil
import shlex
import sys
import traceback

import click

from ..storage.errors import AccessDenied, Interrupted, OutOfMemory, OutOfSpace, SherlCacheError, UsageError
from ..storage.printable import printable
from . import stopping
from .completion import attach
from .launch import Launch
from .redaction import without_secrets
from .usage import Commands, explain_usage

EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_CTRL_C = 130


class CommandFolder(Commands):
    """A click group whose commands are the files of the commands package."""

    def list_commands(self, context: click.Context) -> list[str]:
        package = importlib.import_module(".commands", __package__)
        return sorted(
            item.name.replace("_", "-")
            for item in pkgutil.iter_modules(package.__path__)
            if not item.name.startswith("_")
        )

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(context):
            return None
        command = importlib.import_module(f".commands.{name.replace('-', '_')}", __package__).command
        assert isinstance(command, click.Command)
        attach(command)
        return command


@click.group(cls=CommandFolder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sherl-cache")
def cli() -> None:
    """Adapt a big frozen model on the machine you have.

    `extract` runs the frozen early layers once and stores what they say; `train` trains only a fusion and a few late
    layers from that store.
    """


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; the table of codes is in storage/errors.py."""
    arguments = sys.argv[1:] if argv is None else argv
    verbose = "-v" in arguments or "--verbose" in arguments
    try:
        _require_folder()
        # click hands back the code of a command that ended itself by context.exit
        code = cli.main(args=arguments, prog_name="sherl-cache", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        _say(explain_usage(error))
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        if stopping.asked() is not None:
            return _stopped(arguments)
        stopping.hold()
        _say(f"stopped. {_go_on(arguments)}")
        return EXIT_CTRL_C
    except Interrupted as error:
        stopping.hold()
        if verbose:
            _say(traceback.format_exc().rstrip())
        resumable = error.exit_code == Interrupted.exit_code
        _say(f"{error}. {_go_on(arguments)}" if resumable else f"error: {error}")
        return error.exit_code
    except Exception as error:
        if verbose:
            _say(traceback.format_exc().rstrip())
        known = as_ours(error)
        if known is not None:
            _say(f"error: {type(known).__name__}: {known}" if verbose else f"error: {known}")
            return known.exit_code
        if stopping.raised():  # pydantic, for one, makes an error of its own of what its callbacks raise
            return _stopped(arguments)
        _say(
            f"internal error: {type(error).__name__}: {error}\nThis is a defect of sherl-cache; -v shows where it happened."
        )
        return EXIT_INTERNAL


def _stopped(arguments: list[str]) -> int:
    stopping.hold()
    asked = stopping.asked()
    assert asked is not None
    _say(f"stopped by {asked.name}. {_go_on(arguments)}")
    return Interrupted.exit_code


def as_ours(error: Exception) -> SherlCacheError | None:
    """Our form of an error that the system or an allocator raised where no place of ours could name it better."""
    if isinstance(error, SherlCacheError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutOfSpace(f"no space left writing {error.filename or 'a file'}; free some, or choose another place")
    if isinstance(error, PermissionError):
        return AccessDenied(f"{error.filename}: permission denied; choose a place where you may read and write")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in str(error):
        # the last is a RuntimeError: torch's allocator of a CPU has no class of its own
        return OutOfMemory("out of memory; use a smaller --batch-tokens, data.batch_examples or data.read_budget")
    return None


def _require_folder() -> None:
    """Refuse a current folder that was removed: libraries that are imported later end the process where they miss it."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError('the folder that this was called from is gone; go to one that is there (cd "$PWD")') from None


def _go_on(arguments: list[str]) -> str:
    command = shlex.join(["sherl-cache", *arguments])
    return f"What was committed is kept; the same command goes on from there: {command}"


def _say(text: str) -> None:
    # rich is not used here: the last words must come out whatever state the terminal is in
    with contextlib.suppress(SherlCacheError):
        launch = Launch.of()
        text = text if launch is None else f"{launch}: {text}"
    try:
        click.echo(printable(without_secrets(text)), err=True)
    except BrokenPipeError:
        os._exit(EXIT_INTERNAL)


def entry() -> None:
    """The console script."""
    stopping.listen()
    sys.exit(main())
