"""The frozen early part with one block's weights in memory at a time.

The stack's own forward runs as ever, so that masks and positions are the model's own; but a single layer of it is real,
those before it hand on what they are given, and its input is put in front of it by a hook. All batches of a unit go
through a block before the next one is read. Every other parameter is one zero that is read many times.
"""

from __future__ import annotations

import copy
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .backbones.contract import StreamTable, table_for
from .checkpoint import Checkpoint, checkpoint_dtype, checkpoint_files, meta_model
from .front import Front, checked_taps, first_tensor, prove_split, require_equal
from .late import build_late
from .late_weights import late_weights
from .load import (
    LoadedModel,
    config_from_json,
    explained,
    load_config,
    load_tokenizer,
    quiet_transformers,
    resolved,
)
from .methods.contract import Packed
from .tokens import StreamInput, TokenBatch, stream_input

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


@dataclass(frozen=True)
class StreamedModel(LoadedModel):
    """A pretrained model whose tensors stay on disk; its module holds none."""

    checkpoint: Checkpoint
    where: torch.device
    """Where a block runs."""

    @property
    def device(self) -> torch.device:
        return self.where

    def tensors(self, paths: Sequence[str]) -> dict[str, Tensor]:
        prefixes = tuple(f"{path}." for path in paths)
        names = [name for name in self.checkpoint.names() if name.startswith(prefixes) or name in paths]
        return self.checkpoint.read(names)


class StreamingFront:
    """As `Front`, for a StreamedModel: the same values, one block in memory at a time."""

    def __init__(self, loaded: StreamedModel, taps: Mapping[str, Sequence[int]], blocks: int = 1) -> None:
        """taps: ascending tap numbers of the streams to read; blocks: how many are in memory at once. Raises ModelError
        where the model has no such tap.
        """
        self.loaded, self.blocks = loaded, blocks
        self.table, self.config, self.device = loaded.table, loaded.config, loaded.device
        self.taps = checked_taps(self.table, self.config, taps)
        self.read_seconds = 0.0
        """Spent on reading weights so far."""
        self._model = _placeholders_for(loaded)

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
            name: Packed(torch.cat([part.taps for part in found]), found[0].lengths, self.taps[name])
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
            given = [stream_input(stream, self.config, batch, self.device) for batch in batches]
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
                    packed = given[at].padding.pack(state).unsqueeze(0)
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

    @contextmanager
    def real(self, names: Sequence[str]) -> Iterator[None]:
        """While open, these tensors have their values."""
        undo = []
        begun = time.perf_counter()
        tensors = self.loaded.checkpoint.read(names)
        while tensors:  # one by one, so that none is held twice
            name, tensor = tensors.popitem()
            undo.append(_exchange(self._model, name, tensor.to(self.device)))
        self.read_seconds += time.perf_counter() - begun
        try:
            yield
        finally:
            for module, kept, leaf, before in undo:
                getattr(module, kept)[leaf] = before


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
        self.stack = front._model.get_submodule(table.stack)
        layers = front._model.get_submodule(table.layers)
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
        with self.front.real(kept):
            with self.front.real(outside):
                for at in self._present():
                    self.now[at] = self._run(at, 0, 0)[0][0]
                    yield 0, at, self._state(at)
            for first in range(0, depth, self.front.blocks):
                last = min(first + self.front.blocks, depth)
                names = [name for index in range(first, last) for name in checkpoint.names(f"{layers}{index}.")]
                ends = answer and last == depth
                if ends and table.norm is not None:
                    names += checkpoint.names(norm)
                with self.front.real([name for name in names if name not in kept]):
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
        holder = self.front._model.get_submodule(owner)
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


def load_streamed(
    name: str,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> StreamedModel:
    """As `load_pretrained`, with the tensors left on disk. Raises ModelError, also for a checkpoint whose tensors are
    converted while they are loaded.
    """
    source = resolved(name)
    with quiet_transformers():
        config = load_config(name, source, revision)
        table = table_for(config)
        tokenizer = load_tokenizer(name, source, revision)
        with explained(name, revision, "weights"):
            files = checkpoint_files(source, revision)
            asked = getattr(torch, dtype) if isinstance(dtype, str) else dtype
            asked = asked or checkpoint_dtype(config, files)
            model = meta_model(table, config, asked)
            checkpoint = Checkpoint(model, files, asked, name)
            digest = checkpoint.digest()
    return StreamedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        table=table,
        revision=getattr(config, "_commit_hash", None),
        weights_digest=digest,
        checkpoint=checkpoint,
        where=torch.device(device),
    )


def front_of(loaded: LoadedModel, taps: Mapping[str, Sequence[int]]) -> Front | StreamingFront:
    """The early part of a model, whole or streamed."""
    return StreamingFront(loaded, taps) if isinstance(loaded, StreamedModel) else Front(loaded, taps)


def prove(loaded: LoadedModel, batch: TokenBatch) -> None:
    """That the model can be split, or streamed. Raises ModelError."""
    if isinstance(loaded, StreamedModel):
        prove_streaming(loaded, batch)
    else:
        prove_split(loaded, batch)


@torch.no_grad()
def prove_streaming(loaded: StreamedModel, batch: TokenBatch, late: int = 1) -> None:
    """What `front.prove_split` proves, without the whole model: that the first two blocks of each stream give together
    what they give one after the other, and that the last `late` blocks, built anew from the bytes that the store will
    hold, give on the streamed states what streaming through them gives.

    Two blocks are in memory, or the late ones. Raises ModelError where the states differ by more than rounding.
    """
    table, config = loaded.table, loaded.config
    depths = {stream.name: table.depth(config, stream.name) for stream in table.streams}
    pair = {name: (min(2, depth),) for name, depth in depths.items()}
    together, single = StreamingFront(loaded, pair, blocks=2)(batch), StreamingFront(loaded, pair)(batch)
    for name in pair:
        require_equal(together[name].rows, single[name].rows, loaded, name, "its first two blocks run together")
    cuts = {stream.name: depths[stream.name] - (late if stream.late else 0) for stream in table.streams}
    asked = {name: tuple(sorted({cuts[name], depths[name]})) for name in depths}
    found = StreamingFront(loaded, asked)(batch)
    rebuilt = config_from_json(config.model_type, loaded.config_document())
    parts = build_late(table, rebuilt, late_weights(loaded, late).__getitem__, late, dtype=loaded.dtype)
    assert parts.late is not None
    part = parts.late.to(loaded.device).eval()
    lengths = {name: packed.lengths for name, packed in found.items()}
    memories = {}
    for stream in table.late_streams:
        if stream.memory is not None:
            memory = found[stream.memory].taps[-1]
            if stream.memory in parts.norms:
                memory = parts.norms[stream.memory].to(loaded.device)(memory)
            counts = torch.tensor(batch.candidates, device=loaded.device)
            memories[stream.name] = (memory, lengths[stream.memory], counts)
    states = part({name: packed.taps[0] for name, packed in found.items()}, lengths, memories)
    for stream in table.late_streams:
        expected = found[stream.name].taps[-1]
        require_equal(states[stream.name], expected, loaded, stream.name, "its late layers, run on the stored states,")


def _needed(streams: Sequence[StreamTable], taps: Mapping[str, Sequence[int]]) -> set[str]:
    """Streams with taps, and those they attend to."""
    needed = set(taps)
    for stream in reversed(streams):
        if stream.name in needed and stream.memory is not None:
            needed.add(stream.memory)
    return needed


def _placeholders_for(loaded: StreamedModel) -> nn.Module:
    """The model's module with buffers as its class computes them, and every parameter a zero of no memory."""
    model: Any = copy.deepcopy(loaded.model)  # fronts of one model do not meet in it
    for module in model.modules():
        absent = [(name, buffer) for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name, buffer in absent:
            module._buffers[name] = torch.empty_like(buffer, device="cpu")
        if absent:
            model._init_weights(module)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(loaded.device)
    persistent = dict(model.named_buffers(remove_duplicate=False)).keys() & set(loaded.checkpoint.names())
    for name, tensor in loaded.checkpoint.read(sorted(persistent)).items():
        _exchange(model, name, tensor.to(loaded.device))
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                zeros = torch.zeros((), dtype=parameter.dtype, device=loaded.device).expand(parameter.shape)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
    return model  # type: ignore[no-any-return]


def _exchange(model: nn.Module, name: str, tensor: Tensor) -> tuple[nn.Module, str, str, Tensor | None]:
    """Put a tensor at a name of the state dict; returns what puts the old one back."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        before = module._parameters[leaf]
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        return module, "_parameters", leaf, before
    kept = module._buffers[leaf]
    module._buffers[leaf] = tensor
    return module, "_buffers", leaf, kept
