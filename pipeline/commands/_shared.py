"""Options and printing that every command shares. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import click

from ...storage.printable import printable
from ..redaction import without_secrets

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Decorator = Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]


def output_options(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """--json and -v; the body reads --json as `as_json`."""
    return _stack(
        function,
        click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout."),
        click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show tracebacks of errors."),
    )


def recipe_options(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """--config and --set."""
    return _stack(
        function,
        click.option("--config", metavar="NAME|FILE", help="A shipped recipe or a YAML file.  [default: sherl]"),
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key: --set train.epochs=3."
        ),
    )


def extract_options(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The flags of stage one; each is the recipe key `extract.<name>`."""
    return _stack(
        function,
        click.option("--model", metavar="NAME|FOLDER", help="Model: hub name, folder, or builtin/minilm."),
        click.option("--revision", metavar="R", help="Branch, tag or commit of the model."),
        click.option(
            "--data",
            metavar="NAME|FILE|FOLDER",
            help="Data: glue/sst2, a hub name, a file, a folder, builtin/reviews, builtin/digits.",
        ),
        click.option("--task", metavar="TASK", help="GLUE task of a folder of GLUE files (sst2, rte, ...)."),
        click.option("--validation", metavar="FILE", help="File of validation rows, when --data is a file."),
        click.option(
            "--text-column",
            "text_columns",
            multiple=True,
            metavar="C",
            help="Text column (repeat for pairs), or picture column.",
        ),
        click.option("--label-column", metavar="C", help="Label column."),
        click.option(
            "--splits", metavar="RULE", help="official, paper, holdout:N, or train alone.  [default: official]"
        ),
        click.option(
            "--limit", type=click.IntRange(min=1), metavar="N", help="First N training rows; validation stays whole."
        ),
        click.option("--taps", metavar="GRAMMAR", help='Hidden states: "0,2,-1", "every:2", "encoder:0,2;decoder:0".'),
        click.option("--late", type=click.IntRange(min=1), metavar="N", help="Late blocks whose weights are stored."),
        click.option(
            "--max-length",
            type=click.IntRange(min=2),
            metavar="N",
            help="Tokens an example; longer is cut and counted.",
        ),
        click.option(
            "--answers",
            type=click.Choice(["head", "text"]),
            help="Whether a causal decoder answers by a head or in text.  [default: head]",
        ),
        click.option(
            "--views", type=click.IntRange(min=1), metavar="N", help="Views of each training picture.  [default: 1]"
        ),
        click.option(
            "--augment", metavar="A", help="How other views are drawn: flip, crop:SHARE.  [default: flip+crop:0.5]"
        ),
        click.option(
            "--maps", metavar="M", help="Maps of a convolutional network: max+average or average, then :SIDE of a grid."
        ),
        click.option(
            "--encoding",
            metavar="E",
            help="float64, float32, float16, bfloat16 or int8; then +bitround:BITS, +zstd[:LEVEL].  [default: bfloat16]",
        ),
        click.option("--precision", metavar="P", help="Number format of the forward.  [default: the checkpoint's own]"),
        click.option("--batch-tokens", type=click.IntRange(min=1), metavar="N", help="Padded tokens of one forward."),
        click.option("--unit-memory", metavar="BYTES", help="Bytes of one unit in all taps, as in 512MiB."),
        click.option(
            "--stream-weights",
            is_flag=True,
            default=None,
            help="Hold one block's weights in memory at a time, for a model that fits nowhere.",
        ),
        click.option("--device", metavar="D", help="auto, cpu, cuda, cuda:1, mps.  [default: auto]"),
    )


def extract_flags(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flags of `extract_options` as recipe keys, and what is left of `values` dropped."""
    keys = [
        "model",
        "revision",
        "data",
        "task",
        "validation",
        "text_columns",
        "label_column",
        "splits",
        "limit",
        "taps",
        "late",
        "max_length",
        "answers",
        "views",
        "augment",
        "maps",
        "encoding",
        "precision",
        "batch_tokens",
        "unit_memory",
        "stream_weights",
    ]
    return {f"extract.{key}": values[key] for key in keys} | {"train.device": values["device"]}


def emit(result: Mapping[str, Any], as_json: bool, lines: list[str] | None = None) -> None:
    """Print a result: one JSON document, or lines for people (`key: value` where a command has no better form)."""
    if as_json:
        click.echo(json.dumps(result, indent=1, default=str))
        return
    for line in lines if lines is not None else facts(result):
        echo(line)


def echo(line: str) -> None:
    """A line of the result on stdout: names and texts of others steer no terminal, secrets stay out."""
    click.echo(printable(without_secrets(line)))


def say(text: str) -> None:
    """A line for people on stderr."""
    print(printable(without_secrets(text)), file=sys.stderr, flush=True)


def facts(result: Mapping[str, Any]) -> list[str]:
    """`key: value` lines of a result, as people read them."""
    return [f"{key.replace('_', ' ')}: {_told(key, value)}" for key, value in result.items()]


def _stack(function: Callable[Arguments, Result], *decorators: Any) -> Callable[Arguments, Result]:
    return functools.reduce(lambda inner, decorate: decorate(inner), reversed(decorators), function)


def _told(key: str, value: Any) -> str:
    from ..progress import size

    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return size(value) if key == "bytes" else f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(name, part)}" for name, part in value.items())
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
