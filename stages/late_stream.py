"""The late layers of one stream, inside the model class's own stack and run by its forward.

Early layers become pass-throughs in their own places (positions in the list carry meaning), the last of them hands on
the fused state; every parameter that nothing reads is one zero that is read many times.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from .backbones.contract import PassThrough, StreamTable
from .packing import length_groups, padding_of, rows_of_segments

if TYPE_CHECKING:
    from collections.abc import Callable

    from .folded_memory import FoldedMemory
    from .methods.contract import SegmentTasks
    from .selected_rows import SelectedRows


_PADDING_SHARE = 0.25
"""How many numbers of padding, in weights of the late layers, are cheaper than to read and update those weights once more."""


class NoEmbeddings(nn.Module):
    """Stands in the place of the module that embeds pictures or tokens, whose answer nobody reads: it gives zeros in
    the shape of the state that enters instead.

    It keeps that module's children, since a stack may look at their number format.
    """

    def __init__(self, embeddings: nn.Module, entry: PassThrough) -> None:
        super().__init__()
        self._entry = (entry,)  # in a tuple, since it is a child of the stack
        for name, child in embeddings.named_children():
            self.add_module(name, child)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        (entry,) = self._entry
        assert entry.state is not None
        return entry.state.new_zeros(()).expand(entry.state.shape)


class LateStream(nn.Module):
    """The late layers of one stream. The stack runs in eval mode; the late layers too, unless `dropout` is
    set."""

    def __init__(self, table: StreamTable, stack: nn.Module, first: int, dropout: bool) -> None:
        """stack: the class's own, with its late tensors assigned; first: index of the first late layer."""
        super().__init__()
        self.table = table
        self.dropout = dropout
        self.selected: SelectedRows | None = None
        """How the last layer runs for some rows only, where it can."""
        self.folded: dict[int, FoldedMemory] = {}
        """How layers attend to a memory without keys and values of it, those that can."""
        self.tasks: SegmentTasks | None = None
        """Of the tuner on the layers, where there is one."""
        relative = table.layers.removeprefix(table.stack).removeprefix(".")
        layers = stack.get_submodule(relative)
        assert isinstance(layers, nn.ModuleList)
        for index in range(first):
            layers[index] = table.pass_through(layers[index], index)
        entry = layers[first - 1]
        assert isinstance(entry, PassThrough)
        self.indices = tuple(range(first, len(layers)))
        for index in self.indices:  # before the stack, so that names are those of the layers: `<stream>.<index>.`
            self.add_module(str(index), layers[index])
        if table.norm is not None:  # norms run outside, on packed rows
            stack.set_submodule(table.norm.removeprefix(table.stack).removeprefix("."), nn.Identity())
        if table.embeddings is not None:
            embeddings = table.embeddings.removeprefix(table.stack).removeprefix(".")
            stack.set_submodule(embeddings, NoEmbeddings(stack.get_submodule(embeddings), entry))
        self.stack = stack
        self._entry = (entry,)  # in a tuple, since it is the stack's child and not this module's
        self._computed = self._fill_buffers()
        self._placeholders = _fill_placeholders(stack)

    @property
    def layers(self) -> dict[int, nn.Module]:
        """The late layers by their index in the model."""
        return {index: self.get_submodule(str(index)) for index in self.indices}

    def forward(
        self,
        rows: Tensor,
        lengths: Tensor,
        memory: tuple[Tensor, Tensor, Tensor] | None = None,
        leading: Tensor | None = None,
        read: Tensor | None = None,
        tasks: Tensor | None = None,
    ) -> Tensor:
        """Packed rows [N, D] of segments of `lengths` [S] -> packed rows [N, D]; [S, D] where `read` says which row of
        each segment; `memory`, `leading`, `read` and `tasks` as in LatePart.forward."""
        if not len(lengths):  # a stack cannot run on nothing
            return rows
        if rows.device.type != "cpu":
            with self._tasks_are(tasks):
                return self._run(rows, lengths, memory, leading, read)
        # a CPU pays the full price of padding, so examples of like length run together
        served = torch.ones_like(lengths) if memory is None else memory[2]
        groups = length_groups(lengths) if memory is None else self._memory_groups(rows, lengths, memory[1], served)
        outputs, places = [], []
        for examples in groups:
            segments = rows_of_segments(examples, served)
            where = rows_of_segments(segments, lengths)
            part = None
            if memory is not None:
                part = (memory[0][rows_of_segments(examples, memory[1])], memory[1][examples], served[examples])
            if len(segments):
                some = None if read is None else read[segments]
                with self._tasks_are(None if tasks is None else tasks[segments]):
                    outputs.append(self._run(rows[where], lengths[segments], part, leading, some))
                places.append(where if read is None else segments)
        return torch.cat(outputs)[torch.cat(places).argsort()]

    def _memory_groups(self, rows: Tensor, lengths: Tensor, memory_lengths: Tensor, served: Tensor) -> list[Tensor]:
        """Places of examples, by groups that run together: all of them where a longer memory costs less than another pass over
        the weights."""
        queries, longest = int(lengths.max()), int(memory_lengths.max())
        padding = int((longest - memory_lengths).dot(served)) * rows.shape[-1]
        weights = sum(parameter.numel() for layer in self.layers.values() for parameter in layer.parameters())
        folds = len(self.folded) == len(self.indices) and all(
            folded.pays(queries, longest) for folded in self.folded.values()
        )
        if folds and padding <= _PADDING_SHARE * weights:
            return [torch.arange(len(memory_lengths))]
        return length_groups(memory_lengths)

    def _tasks_are(self, tasks: Tensor | None) -> AbstractContextManager[None]:
        """Meanwhile a tuner that asks finds these tasks of the segments."""
        return nullcontext() if self.tasks is None else self.tasks.during(tasks)

    def _run(
        self,
        rows: Tensor,
        lengths: Tensor,
        memory: tuple[Tensor, Tensor, Tensor] | None,
        leading: Tensor | None,
        read: Tensor | None,
    ) -> Tensor:
        """One padded batch through the stack's own forward."""
        padding = padding_of(lengths)
        state, mask = padding.pad(rows), padding.mask
        front = 0 if leading is None else len(leading)
        if leading is not None:
            state = torch.cat([leading.expand(len(state), *leading.shape), state], dim=1)
            mask = torch.cat([mask.new_ones(len(mask), front), mask], dim=1)
        arguments: dict[str, Any] = dict(self.table.arguments)
        if self.table.memory_arguments is not None:
            assert memory is not None
            memory_rows, memory_lengths, segments = memory
            memory_padding = padding_of(memory_lengths)
            values = (memory_padding.pad(memory_rows), memory_padding.mask)
            for name, value in zip(self.table.memory_arguments, values, strict=True):
                arguments[name] = value.repeat_interleave(segments, dim=0)
        # the stack embeds something of the right shape, and the pass-throughs replace it by the fused state
        stack: Any = self.stack
        if self.table.tokens == "pixels":
            arguments["pixel_values"] = state.new_zeros(()).expand(state.shape)
        elif self.table.embeddings is not None:
            arguments["input_ids"] = mask.new_zeros(()).expand(mask.shape)
            arguments["attention_mask"] = mask
        else:
            width = stack.get_input_embeddings().embedding_dim
            arguments["inputs_embeds"] = state.new_zeros(()).expand(*state.shape[:2], width)
            arguments["attention_mask"] = mask
        (entry,) = self._entry
        entry.state = state
        try:
            with ExitStack() as meanwhile:
                if read is not None and self.selected is not None:
                    meanwhile.enter_context(self.selected.only(read + front))
                for folded in self.folded.values():
                    meanwhile.enter_context(folded.allowed())
                output: Tensor = stack(**arguments).last_hidden_state
        finally:
            entry.state = None
        if read is not None and self.selected is not None:
            return output[:, 0]
        packed = padding.pack(output[:, front:])
        return packed if read is None else packed[lengths.cumsum(0) - lengths + read]

    def drop_first(self) -> None:
        """Go without the first late layer: what enters is its output."""
        first, *rest = self.indices
        relative = self.table.layers.removeprefix(self.table.stack).removeprefix(".")
        layers: Any = self.stack.get_submodule(relative)
        layers[first] = self.table.pass_through(layers[first], first)
        delattr(self, str(first))
        self.folded.pop(first, None)
        self.indices = tuple(rest)

    def train(self, mode: bool = True) -> Self:
        super().train(False)
        for layer in self.layers.values():
            layer.train(mode and self.dropout)
        self.training = mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts as ever, but leaves placeholders one element wide, and computed buffers, such as rotary
        frequencies, in their own number format, as a cast model of the library has them."""
        for module, name, _ in self._placeholders:
            module.register_parameter(name, _frozen(_parameter(module, name).new_zeros(())))
        kept = {(module, name): module._buffers[name] for module, name in self._computed}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for (module, name), buffer in kept.items():
            assert buffer is not None
            module._buffers[name] = buffer.to(fn(buffer).device)
        for module, name, shape in self._placeholders:
            module.register_parameter(name, _frozen(_parameter(module, name).expand(shape)))
        return self

    def _fill_buffers(self) -> list[tuple[nn.Module, str]]:
        """Buffers that no file holds are computed as the class does when it is built; returns where they are."""
        computed = []
        for module in self.stack.modules():
            absent = [(name, buffer) for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
            for name, buffer in absent:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
            if absent:
                self.stack._init_weights(module)  # type: ignore[operator]
            computed += [(module, name) for name, _ in absent]
        return computed


def _fill_placeholders(stack: nn.Module) -> list[tuple[nn.Module, str, torch.Size]]:
    """Give every parameter that is still without a value zeros that take no memory; returns where they
    are."""
    filled = []
    for module in stack.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                zeros = torch.zeros((), dtype=parameter.dtype, device="cpu").expand(parameter.shape)
                module.register_parameter(name, _frozen(zeros))
                filled.append((module, name, parameter.shape))
    return filled


def _parameter(module: nn.Module, name: str) -> Tensor:
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter.detach()


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
