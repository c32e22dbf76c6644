"""The frozen early part of a live model: token batch -> packed taps.

Each stack is cut behind its deepest tap, and taps are read by our own hooks: the hidden states that a model
returns are not what they seem, since the last of them comes after a final norm.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..storage.errors import ModelError
from .backbones.contract import BackboneTable, StreamTable
from .late import build_late
from .late_weights import late_weights
from .load import LoadedModel
from .methods.contract import Packed
from .model_config import config_from_json
from .tokens import StreamInput, stream_input
from .tokens import TokenBatch as TokenBatch


def first_tensor(output: Any) -> Tensor:
    """The hidden states of a layer's output, which is a tensor or a tuple that starts with one."""
    state: Tensor = output[0] if isinstance(output, tuple) else output
    return state


@contextmanager
def recorded(layers: nn.ModuleList, taps: Sequence[int], record: Callable[[int, Tensor], None]) -> Iterator[None]:
    """While open, a forward calls `record(i, h_i)`: the input of layer 0 for tap 0, the output of layer i-1
    for tap i."""
    handles = []
    for tap in taps:
        if tap == 0:
            handles.append(
                layers[0].register_forward_pre_hook(
                    lambda layer, args, kwargs: record(0, args[0] if args else kwargs["hidden_states"]),
                    with_kwargs=True,
                )
            )
        else:
            handles.append(
                layers[tap - 1].register_forward_hook(
                    lambda layer, args, output, tap=tap: record(tap, first_tensor(output))
                )
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Front:
    """Runs a model up to the deepest tap asked for, and nothing above it.

    It shares the weights of the loaded model and leaves that model whole; when the loaded model is dropped,
    what the front does not run is freed.
    """

    def __init__(self, loaded: LoadedModel, taps: Mapping[str, Sequence[int]]) -> None:
        """taps: ascending tap numbers of the streams to read. Raises ModelError where the model has no such
        tap."""
        self.table: BackboneTable = loaded.table
        self.config, self.device, self.dtype = loaded.config, loaded.device, loaded.dtype
        self.taps = checked_taps(self.table, self.config, taps)
        self._stacks: dict[str, tuple[nn.Module, nn.ModuleList]] = {}
        self._cut_stacks({stream.name: loaded.model.get_submodule(stream.stack) for stream in self.table.streams})

    def only(self, taps: Mapping[str, Sequence[int]]) -> "Front":
        """The same for some of the taps: it runs no further than they ask for."""
        front = copy.copy(self)
        front.taps = {name: tuple(numbers) for name, numbers in taps.items() if numbers}
        lacking = {name: set(numbers) - set(self.taps.get(name, ())) for name, numbers in front.taps.items()}
        if any(lacking.values()):
            raise ModelError(f"taps {taps}: this front reads {self.taps}")
        front._stacks = {}
        front._cut_stacks({name: stack for name, (stack, _) in self._stacks.items()})
        return front

    def _cut_stacks(self, stacks: Mapping[str, nn.Module]) -> None:
        needed = self._needed()
        for stream in self.table.streams:
            if stream.name in needed:
                feeds = any(other.memory == stream.name and other.name in needed for other in self.table.streams)
                count = self.table.depth(self.config, stream.name) if feeds else max(self.taps[stream.name][-1], 1)
                self._stacks[stream.name] = _cut(stacks[stream.name], stream, count)

    def run(self, batches: Iterable[TokenBatch]) -> Iterator[tuple[int, dict[str, Packed], bool]]:
        """(number of a batch, its taps, True) for each batch: every one gives all of its taps at once."""
        for number, batch in enumerate(batches):
            yield number, self(batch), True

    @torch.no_grad()
    def __call__(self, batch: TokenBatch) -> dict[str, Packed]:
        """Taps [K, N, D] of every stream asked for, in the model's dtype, or a tuple of taps [N, D_k] where widths differ;
        segments are example-major. Each call returns memory of its own.

        Raises DataError where a text or an answer has no token.
        """
        taps: dict[str, Packed] = {}
        outputs: dict[str, tuple[Tensor, Tensor]] = {}
        for stream in self.table.streams:
            if stream.name not in self._stacks:
                continue
            stack, layers = self._stacks[stream.name]
            given = stream_input(stream, self.config, batch, self.device, self.dtype)
            sink = TapSink(self.taps.get(stream.name, ()), given)
            if not len(given.lengths):  # a batch whose examples have no candidate answers
                width = self.table.width(self.config, stream.name)
                empty = torch.empty(len(sink.depths), 0, width, dtype=self.dtype, device=self.device)
                taps[stream.name] = Packed(empty, given.lengths, sink.depths)
                continue
            arguments: dict[str, Any] = {**given.arguments, **stream.arguments}
            if stream.memory is not None and stream.memory_arguments is not None:
                repeats = torch.tensor(batch.candidates, device=self.device)
                state, mask = outputs[stream.memory]
                arguments[stream.memory_arguments[0]] = state.repeat_interleave(repeats, dim=0)
                arguments[stream.memory_arguments[1]] = mask.repeat_interleave(repeats, dim=0)
            with recorded(layers, sink.depths, sink.record):
                state = stack(**arguments).last_hidden_state
            outputs[stream.name] = state, given.padding.mask
            if sink.depths:
                taps[stream.name] = sink.packed()
        return taps

    def _needed(self) -> set[str]:
        """Streams with taps, and those they attend to."""
        needed = set(self.taps)
        for stream in reversed(self.table.streams):
            if stream.name in needed and stream.memory is not None:
                needed.add(stream.memory)
        return needed


def checked_taps(table: BackboneTable, config: Any, taps: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Taps by stream, for the streams that have some. Raises ModelError where the model has no such tap."""
    found = {name: tuple(numbers) for name, numbers in taps.items() if numbers}
    for name, numbers in found.items():
        if name not in {stream.name for stream in table.streams}:
            raise ModelError(f"taps of {name}: this model's streams are {_names(table)}")
        depth = table.depth(config, name)
        if list(numbers) != sorted(set(numbers)) or not 0 <= numbers[0] <= numbers[-1] <= depth:
            raise ModelError(f"taps {list(numbers)} of {name}: give ascending numbers from 0 to {depth}")
    return found


class TapSink:
    """Packs taps as a forward passes them, into one block [K, N, D]; taps that are maps one by one, since their widths
    differ."""

    def __init__(self, depths: Sequence[int], given: StreamInput) -> None:
        self.depths = tuple(depths)
        self.given = given
        self.block: Tensor | None = None
        self.parts: dict[int, Tensor] = {}

    def record(self, tap: int, state: Tensor) -> None:
        rows = self.given.pack(state)
        if self.given.map_rows is not None:
            self.parts[tap] = rows
            return
        if self.block is None:
            self.block = rows.new_empty(len(self.depths), *rows.shape)
        self.block[self.depths.index(tap)] = rows

    def packed(self) -> Packed:
        """The taps, all of which have passed."""
        if self.given.map_rows is not None:
            return Packed.of([self.parts[tap] for tap in self.depths], self.given.lengths, self.depths)
        assert self.block is not None
        return Packed(self.block, self.given.lengths, self.depths)


@torch.no_grad()
def prove_split(loaded: LoadedModel, batch: TokenBatch, late: int = 1) -> None:
    """Cut the model before its last `late` layers and compare both halves, joined without a fusion, with the
    whole.

    The late half is built anew, in the model's own number format, from the bytes that the store will hold. Of a model
    whose states are maps, of which none runs late, every tap is compared with what the model's own forward says of it.
    Raises ModelError when the states after the last norm, or the logits of a language model, differ by more
    than rounding.
    """
    table, config = loaded.table, loaded.config
    if table.map_form is not None:
        _prove_maps(loaded, batch)
        return
    depths = {stream.name: table.depth(config, stream.name) for stream in table.streams}
    cuts = {stream.name: depths[stream.name] - (late if stream.late else 0) for stream in table.streams}
    packed = Front(loaded, {name: (cut,) for name, cut in cuts.items()})(batch)
    files = late_weights(loaded, late)
    rebuilt = config_from_json(config.model_type, loaded.config_document())
    parts = build_late(table, rebuilt, files.__getitem__, late, dtype=loaded.dtype)
    assert parts.late is not None
    part = parts.late.to(loaded.device).eval()
    norms = {name: norm.to(loaded.device) for name, norm in parts.norms.items()}

    rows = {name: taps.rows for name, taps in packed.items()}
    lengths = {name: taps.lengths for name, taps in packed.items()}
    memories = {}
    for stream in table.late_streams:
        if stream.memory is not None:
            memory = rows[stream.memory]
            if stream.memory in norms:
                memory = norms[stream.memory](memory)
            memories[stream.name] = (
                memory,
                lengths[stream.memory],
                torch.tensor(batch.candidates, device=loaded.device),
            )
    states = part(rows, lengths, memories)
    for stream in table.late_streams:
        joined = norms[stream.name](states[stream.name]) if stream.name in norms else states[stream.name]
        if parts.projection is not None:
            joined = parts.projection.to(loaded.device)(joined)
        whole = _whole(loaded, batch, stream.name)
        if stream.name in norms and not stream.norms_rows:
            whole = norms[stream.name](whole)
        require_equal(joined, whole, loaded, stream.name, "its late layers, run on the stored states,")


def _prove_maps(loaded: LoadedModel, batch: TokenBatch) -> None:
    """That every tap of the front, cut behind it, is the map that the whole model names at that depth, pooled."""
    for stream in loaded.table.streams:
        depth = loaded.table.depth(loaded.config, stream.name)
        given = stream_input(stream, loaded.config, batch, loaded.device, loaded.dtype)
        stack = loaded.model.get_submodule(stream.stack)
        answer = stack(**given.arguments, **stream.arguments, output_hidden_states=True)
        named = [*answer.hidden_states[:depth], answer.last_hidden_state]
        for tap, state in enumerate(named):
            found = Front(loaded, {stream.name: (tap,)})(batch)[stream.name].rows
            require_equal(found, given.pack(state), loaded, stream.name, f"its maps at h{tap:02d}, run up to there,")


def _whole(loaded: LoadedModel, batch: TokenBatch, name: str) -> Tensor:
    """What the model's own forward says of the tokens of a late stream, packed."""
    if loaded.table.head is None and not loaded.table.encoder_decoder:  # of several stacks each stands alone
        stream = loaded.table.stream(name)
        given = stream_input(stream, loaded.config, batch, loaded.device, loaded.dtype)
        answer = loaded.model.get_submodule(stream.stack)(**given.arguments, **stream.arguments)
        return given.padding.pack(answer.last_hidden_state)
    inputs: dict[str, StreamInput] = {}
    arguments: dict[str, Any] = {}
    for stream in loaded.table.streams:
        given = stream_input(stream, loaded.config, batch, loaded.device, loaded.dtype)
        inputs[stream.name] = given
        if stream.tokens == "target":
            arguments |= {f"decoder_{key}": value for key, value in given.arguments.items()}
            repeats = torch.tensor(batch.candidates, device=loaded.device)
            for key in ("input_ids", "attention_mask"):
                arguments[key] = arguments[key].repeat_interleave(repeats, dim=0)
        else:
            arguments |= given.arguments
        arguments |= stream.arguments
    output = loaded.model(**arguments)
    return inputs[name].padding.pack(output.logits if loaded.table.head is not None else output.last_hidden_state)


def require_equal(found: Tensor, expected: Tensor, loaded: LoadedModel, stream: str, what: str) -> None:
    """Raises ModelError, saying `what` differs, where two results are further apart than rounding explains."""
    tolerance = 64 * torch.finfo(loaded.dtype).eps * max(1.0, float(expected.abs().max()))
    difference = float((found - expected).abs().max())
    if not difference <= tolerance:  # NaN is not
        raise ModelError(
            f"the {stream} of {loaded.name} cannot be split: {what} differ from the model's own "
            f"forward by {difference:.3g} (rounding explains {tolerance:.3g}); this version of "
            "transformers runs them in another way"
        )


def _cut(whole: nn.Module, stream: StreamTable, count: int) -> tuple[nn.Module, nn.ModuleList]:
    """The stack of a stream with its first `count` layers only; modules are shared, the stack itself is not
    changed."""
    stack = copy.copy(whole)
    relative = stream.layers.removeprefix(stream.stack).removeprefix(".")
    *path, last = relative.split(".")
    owner = stack
    owner._modules = dict(owner._modules)
    for name in path:
        inner = copy.copy(owner._modules[name])
        assert inner is not None
        inner._modules = dict(inner._modules)
        owner._modules[name] = inner
        owner = inner
    layers = nn.ModuleList(list(owner.get_submodule(last))[:count])  # type: ignore[call-overload]
    owner._modules[last] = layers
    return stack, layers


def _names(table: BackboneTable) -> str:
    return ", ".join(stream.name for stream in table.streams)
