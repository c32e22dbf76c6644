"""Ladder Side-Tuning (Sung et al. 2022, NeurIPS, arXiv 2206.06522): a narrow transformer beside the frozen one.

For each stream, with taps h_0, h_i, .. and side width d = D // reduction:

    s <- W_0 h_0 + b_0
    for every other tap i:    g_i = sigmoid(a_i / 0.1)        a_i = 0 at the start
                              s <- g_i s + (1 - g_i) (W_i h_i + b_i)
                              s <- SideBlock_i(s)
    y = W norm(s) + b                                         of the stream that the head reads

Side blocks have the form of the backbone's own, every width divided by the reduction; those of a decoder attend to
norm(s) of the encoder's side. Taps that are not read are dropped layers. With `init: fisher` side blocks start as the
part of the pretrained blocks that matters most for the task: of the state, of each head and of the feed-forward, the
units whose weights have the largest squared gradients.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import (
    Fusion,
    Layer,
    LayerForm,
    Options,
    Packed,
    Preparation,
    RecipeError,
    RelativeBias,
    StreamSpec,
    choose_taps,
    make_norm,
    padding_of,
)
from ._pruning import prune_block, prune_rows, state_units

_TEMPERATURE = 0.1
# Blocks whose outputs the official recipes read, by number of blocks (T5-base, T5-large); block i gives tap i + 1.
_PUBLISHED_BLOCKS = {12: (1, 2, 3, 5, 6, 7, 9, 10, 11), 24: tuple(range(1, 24, 2))}


class LadderConfig(Options):
    """Options of Ladder Side-Tuning."""

    taps: str | None = Field(
        None,
        description="Taps to read, h00 among them, one side block for each other; unset: the published choice for "
        "encoder-decoders of 12 or 24 blocks, else every tap.",
    )
    reduction: int = Field(8, ge=1, description="Width over side width, D / d; heads keep their number.")
    init: Literal["random", "fisher"] = Field(
        "random",
        description="Side blocks drawn at random, or pruned from the pretrained ones by squared gradients.",
    )
    fisher_examples: int = Field(1024, ge=1, description="Training examples whose gradients are squared and summed.")
    init_std: float = Field(0.01, gt=0, description="Standard deviation of new ladders; their biases start at 0.")


class Rung(nn.Module):
    """What one tap adds to the side state, and the block behind it."""

    def __init__(self, form: LayerForm, width: int, side: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, side)
        self.gate = nn.Parameter(torch.zeros(()))
        self.block = Layer(form, side)


class SideStream(nn.Module):
    """The side network of one stream."""

    def __init__(self, config: LadderConfig, spec: StreamSpec, taps: tuple[int, ...]) -> None:
        super().__init__()
        whole = spec.form if spec.form is not None else plain_form(spec)
        side = spec.width // config.reduction
        self.form = narrowed(whole, config.reduction)
        if side == 0:
            raise RecipeError(
                f"fusion.reduction: {config.reduction} leaves no side width in {spec.name} of width {spec.width}; "
                f"use at most {spec.width}"
            )
        self.side = side
        self.enter = nn.Linear(spec.width, side)
        self.rungs = nn.ModuleList(Rung(self.form, spec.width, side) for _ in taps[1:])
        self.bias = None if self.form.relative is None else RelativeBias(self.form.relative, self.form.heads)
        self.norm = make_norm(self.form, side)
        self.leave = nn.Linear(side, spec.width) if spec.exit == "head" else None
        for linear in (self.enter, *(rung.down for rung in self.rungs), self.leave):
            if isinstance(linear, nn.Linear):
                nn.init.normal_(linear.weight, std=config.init_std)
                nn.init.zeros_(linear.bias)
        if self.bias is not None:
            nn.init.normal_(self.bias.weight, std=side**-0.5)

    def forward(self, packed: Packed, memory: tuple[Tensor, Tensor] | None) -> Tensor:
        """Taps of N tokens -> normed side states [N, d]. memory: [S, M, d] and its mask, for the S segments."""
        padding = padding_of(packed.lengths)
        bias = None if self.bias is None else self.bias(padding.mask.shape[1])
        state = self.enter(packed.taps[0])
        for rung, tap in zip(self.rungs, packed.taps[1:], strict=True):
            assert isinstance(rung, Rung)
            share = torch.sigmoid(rung.gate / _TEMPERATURE)
            state = share * state + (1 - share) * rung.down(tap)
            state = padding.pack(rung.block(padding.pad(state), padding.mask, bias, memory))
        normed: Tensor = self.norm(state)
        return normed


class Ladder(Fusion):
    """A narrow transformer beside the frozen one, fed by each of its layers through gates."""

    Config = LadderConfig
    source = "LST, Sung et al. 2022, arXiv 2206.06522"
    trains = (
        "K (D d + d) + (K - 1) (12 d d + 13 d + 1) + D d + D + 2 d, the stream that the head reads; d = "
        "D / reduction, 12 d d + 13 d is a side block with a plain feed-forward of 4 d"
    )
    exit_norm = "none"
    causal = True
    enters_late = False
    head_stream = "last"

    def __init__(self, configs: Mapping[str, LadderConfig], streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.check_exit(streams)
        self.configs, self.specs = dict(configs), dict(streams)
        self.taps = {name: select(configs[name], name, streams) for name in streams}
        self.sides = nn.ModuleDict(
            {name: SideStream(configs[name], streams[name], self.taps[name]) for name in streams}
        )
        self.widths = {name: spec.width for name, spec in streams.items()}
        for name, spec in streams.items():
            if spec.memory is not None and self._side(name).side != self._side(spec.memory).side:
                raise RecipeError(
                    f"fusion.{name}.reduction: give {name} and {spec.memory} the same, since one reads the other"
                )

    @classmethod
    def from_options(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> Self:
        return cls(cls.stream_configs(options, streams), streams)

    @classmethod
    def reads(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> dict[str, tuple[int, ...]]:
        configs = cls.stream_configs(options, streams)
        return {name: select(configs[name], name, streams) for name in streams}

    def forward(self, streams: Mapping[str, Packed]) -> dict[str, Packed]:
        states: dict[str, tuple[Tensor, Tensor]] = {}
        fused = {}
        for name, packed in streams.items():
            self.check_taps(name, packed, self.taps[name])
            spec, side = self.specs[name], self._side(name)
            memory = None
            if spec.memory is not None:
                rows, lengths = states[spec.memory]
                padding = padding_of(lengths)
                owners = torch.arange(len(lengths), device=lengths.device) if packed.owners is None else packed.owners
                memory = padding.pad(rows)[owners], padding.mask[owners]
            state = side(packed, memory)
            states[name] = state, packed.lengths
            if side.leave is not None:
                fused[name] = Packed(side.leave(state).unsqueeze(0), packed.lengths, (spec.deepest,))
        return fused

    @classmethod
    def prepares(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> bool:
        configs = cls.stream_configs(options, streams)
        for name, config in configs.items():
            if config.init == "fisher" and streams[name].form is None:
                raise RecipeError(
                    f"fusion.init: fisher needs to know how the backbone's {name} layers are put together, which its table "
                    "does not say; use random"
                )
        return any(config.init == "fisher" for config in configs.values())

    def prepare(self, preparation: Preparation) -> None:
        chosen = [name for name, config in self.configs.items() if config.init == "fisher"]
        pretrained = preparation.pretrained()
        blocks = {name: [pretrained.modules_of(name, tap - 1) for tap in self.taps[name][1:]] for name in chosen}
        weights = {
            id(w): w for layers in blocks.values() for layer in layers for m in layer.values() for w in m.parameters()
        }
        squares = {key: torch.zeros_like(weight) for key, weight in weights.items()}
        asked = {key: weight.requires_grad for key, weight in weights.items()}
        for weight in weights.values():
            weight.requires_grad_(True)
        for loss in pretrained.losses(max(self.configs[name].fisher_examples for name in chosen)):
            for key, gradient in zip(
                weights, torch.autograd.grad(loss, list(weights.values()), allow_unused=True), strict=True
            ):
                if gradient is not None:
                    squares[key] += gradient.square()
        for key, weight in weights.items():
            weight.requires_grad_(asked[key])
        sizes = {self._side(name).side for name in chosen}
        with torch.no_grad():
            # streams that read one another prune the same units of the state
            kept = {
                side: state_units([layer for name in chosen for layer in blocks[name]], squares, side) for side in sizes
            }
            for name in chosen:
                side = self._side(name)
                for rung, layer in zip(side.rungs, blocks[name], strict=True):
                    assert isinstance(rung, Rung)
                    prune_block(rung.block, layer, squares, kept[side.side])
                if side.bias is not None:
                    source = pretrained.modules_of(name, 0)["relative_bias"].get_parameter("weight")
                    side.bias.weight.copy_(prune_rows(source, side.bias.weight.shape))

    def _side(self, name: str) -> SideStream:
        side = self.sides[name]
        assert isinstance(side, SideStream)
        return side


def plain_form(spec: StreamSpec) -> LayerForm:
    """A form where the backbone's table gives none: a pre-norm block of heads of width 64."""
    heads = max(spec.width // 64, 1)
    return LayerForm(
        heads=heads,
        head_width=spec.width // heads,
        ffn_width=4 * spec.width,
        norm_first=True,
        norm="layer",
        norm_eps=1e-6,
        activation="gelu",
        causal=spec.causal,
        memory=spec.memory is not None,
    )


def narrowed(form: LayerForm, reduction: int) -> LayerForm:
    """The same form with heads and feed-forward divided by `reduction`."""
    return replace(form, head_width=max(form.head_width // reduction, 1), ffn_width=max(form.ffn_width // reduction, 1))


def select(config: LadderConfig, name: str, streams: Mapping[str, StreamSpec]) -> tuple[int, ...]:
    """Taps that a stream's side reads, h00 first. Raises RecipeError."""
    spec = streams[name]
    taps = choose_taps(config.taps, name, streams)
    if taps is None:
        blocks = _PUBLISHED_BLOCKS.get(spec.depth) if spec.encoder_decoder else None
        taps = tuple(range(spec.deepest + 1)) if blocks is None else (0, *(block + 1 for block in blocks))
    if taps[0] != 0 or len(taps) < 2:
        raise RecipeError(f"fusion.taps ({name}): the side starts from h00 and needs at least one tap more; add 0")
    return taps
