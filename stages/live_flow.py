"""What passes through one stream of a live model in one call, and the hooks that put stage two's states in its way."""

from typing import Any

import torch
from torch import Tensor, nn

from .backbones.contract import StreamTable
from .methods.contract import Packed
from .model import StageTwo
from .packing import Padding, padding_by, padding_of


class Flow:
    """What passes through one stream in one call."""

    def __init__(
        self, table: StreamTable, stage_two: StageTwo, before: tuple["Flow", ...], answers: Tensor | None
    ) -> None:
        """before: the flows of the streams before this one."""
        self.table, self.stage_two, self.before, self.answers = table, stage_two, before, answers
        self.taps = stage_two.reads[table.name]
        self.states: dict[int, Tensor] = {}
        self.padding: Padding | None = None
        """Of the batch; None in generation, where every row of a step counts unless `mask` says otherwise."""
        self.tasks: Tensor | None = None
        """The number of each segment's task, int64 [S], where a tuner reads it."""
        self.mask: Tensor | None = None
        """In generation behind a text: which tokens are there, [B, T], those of earlier steps first."""

    @property
    def where(self) -> Padding:
        """Where the rows lie that have just passed."""
        if self.padding is not None:
            return self.padding
        state = self.states[self.taps[0]]
        if self.mask is not None:
            return padding_by(self.mask[:, -state.shape[1] :])
        return padding_of(torch.full(state.shape[:1], state.shape[1], device=state.device))

    def see_mask(self, stack: nn.Module, args: Any, kwargs: Any) -> None:
        """Note which tokens the stack is told are there."""
        self.mask = kwargs["attention_mask"]

    def packed(self) -> Packed:
        """The taps that have just passed, as a store gives them."""
        padding = self.where
        taps = torch.stack([padding.pack(self.states[tap]) for tap in self.taps])
        return Packed(taps, padding.mask.sum(1), self.taps, tasks=self.tasks)

    def inputs(self) -> dict[str, Packed]:
        """What the fusion needs for this stream: its own taps, and those of streams before it unless it is
        token-wise."""
        alone = self.stage_two.fusion.tokenwise and (
            self.stage_two.late is not None or len(self.stage_two.exit_streams) == 1
        )
        flows = (self,) if alone else (*self.before, self)
        return {flow.table.name: flow.packed() for flow in flows}

    def fused(self) -> tuple[Tensor, Padding]:
        """Fused rows of this stream, and where they lie."""
        fused = self.stage_two.fuse(self.inputs(), self.answers if self.before else None)
        return fused[self.table.name].rows, self.where

    def head_rows(self) -> tuple[Tensor, Tensor]:
        """Without late layers: rows that the head reads, and their lengths."""
        return self.stage_two.final_rows(self.inputs(), self.answers if self.before else None)

    def end(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """With late layers: what the stack gave, [B, T, D] -> rows that the head reads, and their lengths."""
        assert self.padding is not None
        rows = self.padding.pack(state)
        if not self.table.norms_rows:
            rows = self.stage_two.normed(self.table.name, rows)
        return rows, self.padding.mask.sum(1)

    def put_head_rows(self, stack: nn.Module, args: Any, output: Any) -> Any:
        """The stack's answer becomes what the head reads."""
        rows, _ = self.head_rows()
        output.last_hidden_state = self.where.pad(rows)
        return output

    def put_memories_side_by_side(self, stack: nn.Module, args: Any, output: Any) -> Any:
        """The stack's answer becomes [B, T, 2 D]: its own, then the fused one."""
        rows, padding = self.fused()
        fused = padding.pad(self.stage_two.normed(self.table.name, rows))
        output.last_hidden_state = torch.cat([output.last_hidden_state.to(fused.dtype), fused], dim=-1)
        return output

    def enter_layer(self, layer: nn.Module, args: Any, kwargs: Any, *, late: bool, first: bool) -> Any:
        """Give a layer its half of the memory; at the first late layer put the fused state in; cast for late
        ones."""
        arguments = list(args)
        if first:
            rows, padding = self.fused()
            arguments[0] = padding.pad(rows)
        if self.table.layer_memory is not None:
            position, name = self.table.layer_memory
            holder: Any = arguments if len(arguments) > position else kwargs
            key: Any = position if len(arguments) > position else name
            plain, fused = holder[key].chunk(2, dim=-1)
            # without detach, early layers would keep their activations for a gradient that ends in the plain half
            holder[key] = fused if late else plain.detach().to(arguments[0].dtype)
        dtype = self.stage_two.compute.dtype if late else arguments[0].dtype
        return tuple(_cast(value, dtype) for value in arguments), {k: _cast(v, dtype) for k, v in kwargs.items()}

    def compute_angles(self, rotary: nn.Module, args: Any, kwargs: Any) -> Any:
        """Rotary angles in the number format of stage two, which late layers take them in; others round them."""
        dtype = self.stage_two.compute.dtype
        return tuple(_cast(value, dtype) for value in args), {k: _cast(v, dtype) for k, v in kwargs.items()}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
