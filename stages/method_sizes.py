"""What a method reads and how much of it trains, found by building it over a model of common size without any weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch

from ..storage.errors import InvalidInput
from ..storage.notebook import taps_text
from . import plugins
from .layer_form import LayerForm
from .methods.contract import Fusion, Head, HeadSpec, LateOps, Layer, Objective, Op, StreamSpec, Tuner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from .methods.contract import Method


@dataclass(frozen=True)
class Size:
    """An encoder of `blocks` blocks, the last of them late where late blocks may follow a fusion."""

    blocks: int = 12
    width: int = 768
    heads: int = 12
    ffn_width: int = 3072
    classes: int = 2

    def __str__(self) -> str:
        return f"an encoder of {self.blocks} blocks, width {self.width} and {self.classes} classes"


COMMON: Final = Size()


@dataclass(frozen=True)
class Sizing:
    """`reads` in words; `trained`: numbers that train with every option at its default, None where that cannot be built."""

    reads: str
    trained: int | None


def sizing(axis: str, name: str, size: Size = COMMON, options: Mapping[str, Any] | None = None) -> Sizing:
    """Of one method over a model of that size. Raises RecipeError as `plugins.find` does."""
    method = plugins.find(axis, name)
    built: nn.Module | None = None
    words = _in_words(method)
    try:
        with torch.device("meta"):
            if issubclass(method, Fusion):
                streams = fusion_streams(method, size, options or {})
                words = f"{_taps(method.reads(options or {}, streams))}; {words}"
                built = method.from_options(options or {}, streams)
            elif issubclass(method, Tuner):
                built = method.from_options(options or {}, late_ops(size))
                ops = list(dict.fromkeys(op.role for op, _ in built.placed))
                words = f"{', '.join(ops)} of every late block" if ops else "the rows that enter the late blocks"
            elif issubclass(method, Head):
                built = method.from_options(options or {}, head_spec(method, size))
            elif issubclass(method, Objective):
                built = method.from_options(options or {})
    except InvalidInput:  # a plug-in that needs an option has no size without it
        return Sizing(words, None)
    return Sizing(words, None if built is None else trained_numbers(built))


def trained_numbers(module: nn.Module) -> int:
    """How many numbers of a module train; what is shared counts once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def fusion_streams(method: type[Fusion], size: Size, options: Mapping[str, Any]) -> dict[str, StreamSpec]:
    """The streams of a model of that size, with the frozen blocks that the fusion calls."""
    form = LayerForm(
        heads=size.heads,
        head_width=size.width // size.heads,
        ffn_width=size.ffn_width,
        norm_first=False,
        norm="layer",
        norm_eps=1e-12,
        activation="gelu",
    )
    late = 1 if method.enters_late else 0
    spec = StreamSpec(
        name="encoder",
        width=size.width,
        depth=size.blocks,
        late=late,
        exit="late" if late else "head",
        encoder_decoder=False,
        form=form,
    )
    called = method.frozen_layers(options, {"encoder": spec}).get("encoder", ())
    layers = {number: Layer(form, size.width).requires_grad_(False) for number in called}
    return {"encoder": replace(spec, layers=layers)}


def late_ops(size: Size) -> LateOps:
    """The ops of one late block of that size."""
    number = size.blocks - 1

    def op(role: str, kind: Any, wide: int, out: int, inside: Mapping[str, Op] | None = None) -> Op:
        return Op(
            stream="encoder", layer=number, role=role, kind=kind, in_width=wide, out_width=out, inside=inside or {}
        )

    d, f = size.width, size.ffn_width
    linear = {role: op(role, "linear", d, d) for role in ("query", "key", "value", "out")}
    linear |= {"ffn_in": op("ffn_in", "linear", d, f), "ffn_out": op("ffn_out", "linear", f, d)}
    norms = {role: op(role, "norm", d, d) for role in ("attention_norm", "ffn_norm")}
    whole = (
        op("attention", "attention", d, d, {role: linear[role] for role in ("query", "key", "value", "out")}),
        op("ffn", "ffn", d, d, {role: linear[role] for role in ("ffn_in", "ffn_out")}),
        op("block", "block", d, d, linear),
    )
    return LateOps((*linear.values(), *norms.values(), *whole))


def head_spec(method: type[Head], size: Size) -> HeadSpec:
    """A task that the head answers, over a model of that size."""
    return HeadSpec(
        width=size.width,
        kind=method.kinds[0],
        classes=size.classes,
        pooling="mean",
        initializer_range=0.02,
        lm=lambda rows: rows,
    )


def _taps(taps: Mapping[str, tuple[int, ...]]) -> str:
    return "; ".join(f"{taps_text(numbers)} of the {stream}" for stream, numbers in taps.items())


def _in_words(method: type[Method]) -> str:
    """What a method reads, as far as its class says it."""
    if issubclass(method, Fusion):
        alone = "every token alone" if method.tokenwise else "the tokens of a text together"
        return f"{alone}; {'late blocks may follow' if method.enters_late else 'ends at the head'}"
    if issubclass(method, Head):
        rows = {"tokens": "every row", "pair": "one row of each of two streams"}.get(method.output, "one row of a text")
        return f"{rows}; for {' and '.join(method.kinds)}"
    if issubclass(method, Objective):
        whole = "; the whole batch at once" if method.couples_batch else ""
        what = {"features": "fused features", "pair": "two sets of vectors"}.get(method.output, method.output)
        return f"{what}; for {', '.join(method.kinds)}{whole}"
    return ""
