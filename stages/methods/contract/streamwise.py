"""Fusions that treat each stream alone, with one block a stream."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ...taps import parse_taps, split_streams
from .base import Packed
from .fusion import Fusion, StreamSpec


class Block(nn.Module, ABC):
    """Fuses one stream token by token: row n of the result depends on row n of the taps alone."""

    def __init__(self, config: Any, spec: StreamSpec, taps: tuple[int, ...]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, taps: Any) -> Tensor:
        """[K, N, D], or a tuple of K [N, D_k] -> [N, D]."""


class SegmentBlock(nn.Module, ABC):
    """Fuses one stream segment by segment: rows of a segment meet, segments do not."""

    def __init__(self, config: Any, spec: StreamSpec, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.out_width = spec.width
        """Width W of the rows that it gives."""

    @abstractmethod
    def forward(self, taps: Any, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[K, N, D], or a tuple of K [N, D_k], and int64 [S] with sum N -> rows [M, W] and their lengths [S] with sum M."""


class StreamwiseFusion(Fusion):
    """A fusion of one block a stream; the blocks are instances of the same code and share nothing.

    A subclass names its `block` and may override `select`.
    """

    block: ClassVar[type[Block] | type[SegmentBlock]]

    def __init__(self, configs: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.check_exit(streams)
        self.taps = {name: self.select(configs[name], name, streams) for name in streams}
        self.deepest = {name: spec.deepest for name, spec in streams.items()}
        self.blocks = nn.ModuleDict(
            {name: self.block(configs[name], spec, self.taps[name]) for name, spec in streams.items()}
        )
        self.widths = {name: getattr(block, "out_width", streams[name].width) for name, block in self.blocks.items()}

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
            self.check_taps(name, packed, self.taps[name])
            rows, lengths = self.fuse_stream(self.blocks[name], packed)
            fused[name] = Packed(rows.unsqueeze(0), lengths, (self.deepest[name],))
        return fused

    def fuse_stream(self, block: nn.Module, packed: Packed) -> tuple[Tensor, Tensor]:
        """Fused rows [M, W] of one stream and their lengths [S]."""
        rows, lengths = block(packed.taps, packed.lengths)
        return rows, lengths


class TokenwiseFusion(StreamwiseFusion):
    """A streamwise fusion whose blocks see one token at a time."""

    tokenwise = True
    causal = True

    def fuse_stream(self, block: nn.Module, packed: Packed) -> tuple[Tensor, Tensor]:
        return block(packed.taps), packed.lengths


def choose_taps(grammar: str | None, name: str, streams: Mapping[str, StreamSpec]) -> tuple[int, ...] | None:
    """Taps of stream `name` by the grammar of `stages/taps.py`; None where the grammar does not speak of it.

    Raises RecipeError.
    """
    if grammar is None:
        return None
    rule = split_streams(grammar, streams, where="fusion.taps").get(name)
    return None if rule is None else parse_taps(rule, streams[name].deepest, where=f"fusion.taps ({name})")
