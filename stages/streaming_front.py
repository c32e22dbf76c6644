"""The frozen early part with one block's weights in memory at a time.

The stack's own forward runs as ever, so that masks and positions are the model's own; but a single layer of it is real,
those before it hand on what they are given, and its input is put in front of it by a hook. All batches of a unit go
through a block before the next one is read. Every other parameter is one zero that is read many times.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .front import Front, checked_taps, first_tensor
from .methods.contract import Packed
from .streamed_model import Skeleton, StreamedModel
from .tokens import StreamInput, TokenBatch, stream_input

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .backbones.contract import StreamTable
    from .load import LoadedModel


class StreamingFront:
    """As `Front`, for a StreamedModel: the same values, one block in memory at a time."""

    def __init__(self, loaded: StreamedModel, taps: Mapping[str, Sequence[int]], blocks: int = 1) -> None:
        """taps: ascending tap numbers of the streams to read; blocks: how many are in memory at once. Raises ModelError
        where the model has no such tap.
        """
        self.loaded, self.blocks = loaded, blocks
        self.table, self.config, self.device = loaded.table, loaded.config, loaded.device
        self.taps = checked_taps(self.table, self.config, taps)
        self.skeleton = Skeleton(loaded)

    def only(self, taps: Mapping[str, Sequence[int]]) -> StreamingFront:
        """The same for some of the taps: it runs no further than they ask for."""
        front = copy.copy(self)
        front.taps = checked_taps(self.table, self.config, taps)
        return front

    def __call__(self, batch: TokenBatch) -> dict[str, Packed]:
        """Taps [K, N, D] of every stream asked for; reads the model once."""
        parts: dict[str, list[Packed]] = {}
        for _, taps, _ in self.run([batch]):
            for name, packed in taps.items():
                parts.setdefault(name, []).append(packed)
        return {
            name: Packed.of([part.rows for part in found], found[0].lengths, self.taps[name])
            for name, found in parts.items()
        }

    @torch.no_grad()
    def run(self, batches: Iterable[TokenBatch]) -> Iterator[tuple[int, dict[str, Packed], bool]]:
        """(number of a batch, some of its taps, whether they are its last), block after block; in all every tap of every
        batch once. The states of all batches are in memory; where another stream reads a stream's answer, that too.

        Raises DataError where a text or an answer has no token.
        """
        batches = list(batches)
        answers: dict[str, list[Tensor | None]] = {}
        inputs: dict[str, list[StreamInput]] = {}
        needed = _needed(self.table.streams, self.taps)
        for stream in self.table.streams:
            if stream.name not in needed:
                continue
            given = [stream_input(stream, self.config, batch, self.device, self.loaded.dtype) for batch in batches]
            inputs[stream.name] = given
            feeds = any(other.memory == stream.name and other.name in needed for other in self.table.streams)
            arguments = [
                self._arguments(stream, given[at], batches[at], at, answers, inputs) for at in range(len(given))
            ]
            running = _Stream(self, stream, given, arguments)
            taps = self.taps.get(stream.name, ())
            depth = self.table.depth(self.config, stream.name) if feeds else taps[-1]
            formats: dict[int, torch.dtype] = {}  # as `Front` has them: of a batch's first tap
            for tap, at, state in running.states(depth, answer=feeds):
                if tap in taps:
                    packed = given[at].pack(state).unsqueeze(0)
                    packed = packed.to(formats.setdefault(at, packed.dtype))
                    yield at, {stream.name: Packed(packed, given[at].lengths, (tap,))}, False
            if feeds:
                answers[stream.name] = running.answers
        for at in range(len(batches)):
            yield at, {}, True

    def _arguments(
        self,
        stream: StreamTable,
        given: StreamInput,
        batch: TokenBatch,
        at: int,
        answers: Mapping[str, Sequence[Tensor | None]],
        inputs: Mapping[str, Sequence[StreamInput]],
    ) -> dict[str, Any]:
        """Keyword arguments of the stack's forward for one batch; a memory is repeated when it is used."""
        arguments: dict[str, Any] = {**given.arguments, **stream.arguments}
        if stream.memory is not None and stream.memory_arguments is not None:
            repeats = torch.tensor(batch.candidates, device=self.device)
            values = (answers[stream.memory][at], inputs[stream.memory][at].padding.mask)
            for name, value in zip(stream.memory_arguments, values, strict=True):
                arguments[name] = None if value is None else _Repeated(value, repeats)
        return arguments


@dataclass(frozen=True)
class _Repeated:
    """A memory that several segments of an example read: repeated for a call, so that one copy is kept."""

    value: Tensor
    repeats: Tensor

    def now(self) -> Tensor:
        return self.value.repeat_interleave(self.repeats, dim=0)


class _Stream:
    """The batches of a unit on their way through one stack."""

    def __init__(
        self,
        front: StreamingFront,
        table: StreamTable,
        given: Sequence[StreamInput],
        arguments: Sequence[Mapping[str, Any]],
    ) -> None:
        self.front, self.table, self.given, self.arguments = front, table, given, arguments
        self.stack = front.skeleton.module.get_submodule(table.stack)
        layers = front.skeleton.module.get_submodule(table.layers)
        assert isinstance(layers, nn.ModuleList)
        self.layers = layers
        self.early = [table.pass_through(layer, index) for index, layer in enumerate(layers)]
        self.now: list[Tensor | None] = [None] * len(given)
        self.answers: list[Tensor | None] = [None] * len(given)

    def states(self, depth: int, answer: bool) -> Iterator[tuple[int, int, Tensor]]:
        """(tap, number of the batch, state [S, T, D]) up to a depth; with `answer` the stack's own answer is kept too."""
        checkpoint, table = self.front.loaded.checkpoint, self.table
        kept = [name for path in table.kept for name in checkpoint.names(f"{path}.")]
        below = checkpoint.names(f"{table.stack}." if table.stack else "")
        layers, norm = f"{table.layers}.", f"{table.norm}."
        outside = [name for name in below if not name.startswith((layers, norm))]
        with self.front.skeleton.real(kept):
            with self.front.skeleton.real(outside):
                for at in self._present():
                    self.now[at] = self._run(at, 0, 0)[0][0]
                    yield 0, at, self._state(at)
            for first in range(0, depth, self.front.blocks):
                last = min(first + self.front.blocks, depth)
                names = [name for index in range(first, last) for name in checkpoint.names(f"{layers}{index}.")]
                ends = answer and last == depth
                if ends and table.norm is not None:
                    names += checkpoint.names(norm)
                with self.front.skeleton.real([name for name in names if name not in kept]):
                    for at in self._present():
                        found, said = self._run(at, first, last)
                        self.now[at] = found[last]
                        if ends:
                            self.answers[at] = said
                        for tap in range(first + 1, last + 1):
                            yield tap, at, found[tap]

    def _present(self) -> list[int]:
        """Batches that have segments: a stack cannot run on nothing."""
        return [at for at, given in enumerate(self.given) if len(given.lengths)]

    def _state(self, at: int) -> Tensor:
        state = self.now[at]
        assert state is not None
        return state

    def _run(self, at: int, first: int, last: int) -> tuple[dict[int, Tensor], Tensor]:
        """One batch through layers first to last - 1; its states by tap (h00 where no layer is real), and what the stack
        then says.
        """
        found: dict[int, Tensor] = {}

        def enter(layer: nn.Module, args: Any, kwargs: Any) -> Any:
            if not last:
                found[0] = args[0] if args else kwargs["hidden_states"]
                return None
            if args:
                return (self._state(at), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self._state(at)}

        real = list(self.layers)[first:last] if last else [self.early[0]]
        running = nn.ModuleList([*self.early[:first], *real])
        owner, _, leaf = self.table.layers.rpartition(".")
        holder = self.front.skeleton.module.get_submodule(owner)
        with ExitStack() as undo:
            holder._modules[leaf] = running
            undo.callback(holder._modules.__setitem__, leaf, self.layers)
            undo.callback(real[0].register_forward_pre_hook(enter, with_kwargs=True).remove)
            for tap, layer in enumerate(real[: last - first], first + 1):
                hook = layer.register_forward_hook(
                    lambda layer, args, output, tap=tap: found.__setitem__(tap, first_tensor(output))
                )
                undo.callback(hook.remove)
            arguments = {
                name: value.now() if isinstance(value, _Repeated) else value
                for name, value in self.arguments[at].items()
            }
            said = self.stack(**arguments).last_hidden_state
        return found, said


def front_of(loaded: LoadedModel, taps: Mapping[str, Sequence[int]]) -> Front | StreamingFront:
    """The early part of a model, whole or streamed."""
    return StreamingFront(loaded, taps) if isinstance(loaded, StreamedModel) else Front(loaded, taps)


def _needed(streams: Sequence[StreamTable], taps: Mapping[str, Sequence[int]]) -> set[str]:
    """Streams with taps, and those they attend to."""
    needed = set(taps)
    for stream in reversed(streams):
        if stream.name in needed and stream.memory is not None:
            needed.add(stream.memory)
    return needed
