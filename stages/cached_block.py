"""The first late block, read from the store instead of run.

Where the fusion hands on the deepest tap h_k as it is, and all that a tuner does to block k is to add to its output, what
the frozen block gives is a tap too: h_(k+1). The parts read both, and the block never runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .methods.contract import Packed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

    from .methods.contract import Part, Tuner
    from .model import StageTwo


@dataclass(frozen=True)
class FusedAndOutput(Packed):
    """Fused rows, and what the frozen block gives for them, [N, D]."""

    output: Tensor = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class CachedBlock:
    """Block `tap` - 1 of a stream, which is not run."""

    stream: str
    tap: int
    tuner: Tuner
    parts: tuple[Part, ...]

    def split(self, inputs: Mapping[str, Packed]) -> tuple[dict[str, Packed], Tensor]:
        """Taps -> those that a fusion reads, and the block's output [N, D], which is the last tap of its stream."""
        own = inputs[self.stream]
        read = Packed(own.taps[:-1], own.lengths, own.depths[:-1], tasks=own.tasks)
        return {**inputs, self.stream: read}, own.taps[-1]

    def beside(self, fused: Mapping[str, Packed], output: Tensor) -> dict[str, Packed]:
        """Fused rows of every stream, with the block's output beside those of its own."""
        own = fused[self.stream]
        there = output.to(own.taps.device, own.taps.dtype)
        return {**fused, self.stream: FusedAndOutput(own.taps, own.lengths, own.depths, output=there)}

    def after(self, fused: Packed) -> Tensor:
        """What `beside` gave for the stream -> its rows [N, D] behind the block, with what the tuner adds."""
        assert isinstance(fused, FusedAndOutput)
        x, y = fused.rows, fused.output
        if self.tuner.enabled:
            for part in self.parts:
                y = part.leave(x[None], y[None])[0]
        return y


def read_first_block(model: StageTwo, stored: Mapping[str, Collection[int]]) -> bool:
    """Let `model` read the first late block's output, where that is exact and `stored` has the tap; whether it does.

    stored: tap numbers by stream. Afterwards `model.reads` names the tap, the block has no weights in the model, and the
    model can no longer be hung into a live one.
    """
    late, tuner, recipe = model.late, model.tuner, model.recipe
    if late is None or tuner is None or len(late.names) != 1 or not model.fusion.hands_on_deepest:
        return False
    if recipe.features_dropout or recipe.late_dropout or tuner.mixes_rows or tuner.leading_rows():
        return False
    (name,) = late.names
    stream, tap = late.stream(name), model.specs[name].deepest + 1
    placed = [(op, part) for op, part in tuner.placed if op.layer == stream.indices[0]]
    if not placed or tap not in stored.get(name, ()):
        return False
    if any(op.kind != "block" or part.overrides("enter") or part.overrides("attend") for op, part in placed):
        return False
    stream.drop_first()
    model.cached_block = CachedBlock(name, tap, tuner, tuple(part for _, part in placed))
    model.reads = {**model.reads, name: (*model.reads[name], tap)}
    return True
