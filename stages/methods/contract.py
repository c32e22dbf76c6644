"""What a method is: the three axes (fusion, head, objective) and what they are built from.

A method file holds one subclass of its axis and imports torch, pydantic, the standard library and this file.
Rows are valid tokens only, packed one after another: N rows make up S segments, and no row is padding.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ...storage.errors import RecipeError as RecipeError  # method files raise it from here
from ..plugins import validate_options
from ..taps import parse_taps, split_streams

UNLABELLED = -100
"""What stands in `Targets.tokens` and `Targets.gold` where there is no label; torch's own `ignore_index`."""

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True)
class Packed:
    """Taps of the valid tokens of one stream, or, after a fusion, its fused rows (K = 1).

    taps: [K, N, D], shallow to deep; lengths: int64 [S] with sum N; depths: the tap number of each of the K.
    """

    taps: Tensor
    lengths: Tensor
    depths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.taps.ndim != 3 or len(self.taps) != len(self.depths):
            raise ValueError(f"taps of shape {tuple(self.taps.shape)} are not [K, N, D] of {len(self.depths)} depths")

    @property
    def rows(self) -> Tensor:
        """[N, D]: the only tap. Raises ValueError when there are several."""
        if len(self.depths) != 1:
            raise ValueError(f"there are {len(self.depths)} taps; only fused rows are a single one")
        return self.taps[0]


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """One stream of a backbone as a fusion sees it.

    depth: number of blocks; late: how many of them run after the fusion; exit: where the fused rows go: into
    `late` blocks, as `memory` to another stream's late blocks, or straight to the `head`.
    """

    name: str
    width: int
    depth: int
    late: int
    exit: Literal["late", "memory", "head"]
    encoder_decoder: bool

    @property
    def deepest(self) -> int:
        """Number of the deepest tap that can be read: the state from which the late blocks start."""
        return self.depth - self.late


class Options(BaseModel):
    """Base of every method's `Config`: frozen, unknown keys refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Method(nn.Module, ABC):
    """One plug-in: a `Config` and a module built from it. The docstring's first line is its summary."""

    axis: ClassVar[str]
    Config: ClassVar[type[Options]] = Options
    source: ClassVar[str] = ""
    """Paper and equation, for `sherl-cache methods`."""

    @classmethod
    def method_name(cls) -> str:
        """The name by which recipes call it: that of its file."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def validated(cls, options: Mapping[str, Any]) -> Any:
        """The `Config` of raw options. Raises RecipeError."""
        return validate_options(cls.Config, options, where=cls.axis, owner=cls.method_name())


# ---- fusion


class Fusion(Method):
    """Taps of every stream -> the one state a stream that its late blocks, or others', go on from.

    `options` are the recipe's `fusion` section without its `name`: keys of the Config, and under a stream's
    name a mapping of keys that hold for this stream only.
    """

    axis = "fusion"
    exit_norm: ClassVar[Literal["new", "pretrained", "none"]] = "pretrained"
    """The final norm after the fused path: a new trainable one, the pretrained one, or none at all."""

    @classmethod
    @abstractmethod
    def from_options(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> Self:
        """The fusion for these streams. Raises RecipeError."""

    @classmethod
    @abstractmethod
    def reads(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> dict[str, tuple[int, ...]]:
        """Ascending tap numbers of each stream; the reader fetches no others. Raises RecipeError."""

    @abstractmethod
    def forward(self, streams: Mapping[str, Packed]) -> dict[str, Packed]:
        """Taps as `reads` lists them, in the parameters' dtype -> fused rows (K = 1) of the same streams."""

    @classmethod
    def stream_configs(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> dict[str, Any]:
        """A `Config` for each stream: the shared options with the stream's own on top. Raises RecipeError."""
        shared = {key: value for key, value in options.items() if key not in streams}
        owner = cls.method_name()
        validate_options(cls.Config, shared, where=cls.axis, owner=owner, also=streams)
        configs = {}
        for name in streams:
            own = options.get(name, {})
            if not isinstance(own, Mapping):
                raise RecipeError(f"{cls.axis}.{name}: options of one stream are a mapping, not {own!r}")
            where = f"{cls.axis}.{name}"
            configs[name] = validate_options(cls.Config, {**shared, **own}, where=where, owner=owner)
        return configs


class Block(nn.Module, ABC):
    """Fuses one stream token by token: row n of the result depends on row n of the taps alone."""

    def __init__(self, config: Any, spec: StreamSpec, taps: tuple[int, ...]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, taps: Tensor) -> Tensor:
        """[K, N, D] -> [N, D]."""


class TokenwiseFusion(Fusion):
    """A fusion of one block a stream; the blocks are instances of the same code and share nothing.

    A subclass names its `block` and may override `select`.
    """

    block: ClassVar[type[Block]]

    def __init__(self, configs: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.taps = {name: self.select(configs[name], name, streams) for name in streams}
        self.deepest = {name: spec.deepest for name, spec in streams.items()}
        self.blocks = nn.ModuleDict(
            {name: self.block(configs[name], spec, self.taps[name]) for name, spec in streams.items()}
        )

    @classmethod
    def select(cls, config: Any, name: str, streams: Mapping[str, StreamSpec]) -> tuple[int, ...]:
        """Ascending tap numbers that the stream's block reads; here the Config's `taps`, else every tap.

        Raises RecipeError.
        """
        chosen = choose_taps(getattr(config, "taps", None), name, streams)
        return tuple(range(streams[name].deepest + 1)) if chosen is None else chosen

    @classmethod
    def from_options(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> Self:
        return cls(cls.stream_configs(options, streams), streams)

    @classmethod
    def reads(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> dict[str, tuple[int, ...]]:
        configs = cls.stream_configs(options, streams)
        return {name: cls.select(configs[name], name, streams) for name in streams}

    def forward(self, streams: Mapping[str, Packed]) -> dict[str, Packed]:
        fused = {}
        for name, packed in streams.items():
            if packed.depths != self.taps[name]:
                raise ValueError(f"{name}: the fusion reads taps {self.taps[name]}, and was given {packed.depths}")
            rows = self.blocks[name](packed.taps)
            fused[name] = Packed(rows.unsqueeze(0), packed.lengths, (self.deepest[name],))
        return fused


def choose_taps(grammar: str | None, name: str, streams: Mapping[str, StreamSpec]) -> tuple[int, ...] | None:
    """Taps of stream `name` by the grammar of `stages/taps.py`; None where the grammar does not speak of it.

    Raises RecipeError.
    """
    if grammar is None:
        return None
    rule = split_streams(grammar, streams, where="fusion.taps").get(name)
    return None if rule is None else parse_taps(rule, streams[name].deepest, where=f"fusion.taps ({name})")


# ---- head


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """What a head is built for.

    width: of the rows it reads; kind: the task's (`classification`, `regression`); classes: how many labels
    there are; pooling: the backbone's own; initializer_range: standard deviation of new weights; lm: rows
    [N, D] -> logits [N, V], the backbone's pretrained output projection, which stays the model's.
    """

    width: int
    kind: str
    classes: int
    pooling: Pooling
    initializer_range: float
    lm: Callable[[Tensor], Tensor] | None = None


class Head(Method):
    """Rows after the last block -> what the objective reads."""

    axis = "head"
    kinds: ClassVar[tuple[str, ...]]
    """Kinds of tasks that it answers."""
    output: ClassVar[Literal["classes", "score", "tokens"]]
    """What it gives: `classes` [S, C], `score` [S], or `tokens` [N, V]."""

    def __init__(self, config: Any, spec: HeadSpec) -> None:
        super().__init__()

    @classmethod
    def from_options(cls, options: Mapping[str, Any], spec: HeadSpec) -> Self:
        """The head for this task. Raises RecipeError, also where it does not answer this kind of task."""
        if spec.kind not in cls.kinds:
            raise RecipeError(
                f"head.name: {cls.method_name()} answers {' and '.join(cls.kinds)}, this task is one of {spec.kind}: "
                "leave head.name out for the head that fits"
            )
        return cls(cls.validated(options), spec)

    @abstractmethod
    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Rows [N, D] of segments of `lengths` [S] -> see `output`; for `tokens` any rows will do."""


def pool_segments(rows: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """[N, D] -> [S, D]: the mean of each segment's rows, or its first row (`cls`); lengths are at least 1."""
    if pooling == "cls":
        return rows[lengths.cumsum(0) - lengths]
    segments = torch.arange(len(lengths), device=rows.device)
    owner = torch.repeat_interleave(segments, lengths, output_size=len(rows))  # [N]; without the size it would sync
    wide = at_least_float32(rows)  # a sum in half precision loses what a mean is for
    sums = wide.new_zeros(len(lengths), rows.shape[1]).index_add(0, owner, wide)
    return (sums / lengths.unsqueeze(1)).to(rows.dtype)


# ---- objective


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What a batch should have answered; what is missing is None.

    gold: int64 [S], the class, negative where there is no label; score: float [S], NaN where there is none;
    tokens: int64 [N], UNLABELLED where there is none.
    """

    gold: Tensor | None = None
    score: Tensor | None = None
    tokens: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """A loss before it is divided, so that the loop can divide by the weight of the whole global batch.

    sum: scalar with gradient; weight: scalar, how much was summed; parts: named sums without gradient.
    """

    sum: Tensor
    weight: Tensor
    parts: dict[str, Tensor]


class Objective(Method):
    """Output of the head + targets -> Loss. Rows without label contribute nothing to sum and weight."""

    axis = "objective"
    kinds: ClassVar[tuple[str, ...]]
    """Kinds of tasks that it serves."""
    output: ClassVar[Literal["classes", "score", "tokens"]]
    """Which output of a head it reads; see `Head.output`."""

    def __init__(self, config: Any) -> None:
        super().__init__()

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """The objective. Raises RecipeError."""
        return cls(cls.validated(options))

    @abstractmethod
    def forward(self, output: Tensor, targets: Targets) -> Loss:
        """Computed in at least float32. Raises RecipeError when the labels that it needs are missing."""


def at_least_float32(values: Tensor) -> Tensor:
    """The same values in float32 or, where they are float64, in float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
