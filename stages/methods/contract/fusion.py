"""The fusion axis: taps of every stream -> the one state a stream that late layers, or a head, go on from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from ....storage.errors import RecipeError
from ...plugins import validate_options
from ...taps import parse_taps, split_streams
from .base import Method, Packed


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


class Fusion(Method):
    """Taps of every stream -> the one state a stream that its late blocks, or others', go on from.

    `options` are the recipe's `fusion` section without its `name`: keys of the Config, and under a stream's
    name a mapping of keys that hold for this stream only.
    """

    axis = "fusion"
    exit_norm: ClassVar[Literal["new", "pretrained", "none"]] = "pretrained"
    """The final norm after the fused path: a new trainable one, the pretrained one, or none at all."""
    hands_on_deepest: ClassVar[bool] = False
    """Whether the fused rows of every stream are its deepest tap as it is, and no other tap is read."""

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
