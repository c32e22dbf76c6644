"""The late part of a model, from a store's own weights and through the model class's own forward.

The class is built on the meta device, so that no early tensor exists; late tensors are assigned by the loaded module's
own names; the layers of each stream then stand in a `LateStream`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

from ..storage.errors import ModelError
from .late_stream import LateStream
from .late_weights import REST, block_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .backbones.contract import BackboneTable


class OutputProjection(nn.Module):
    """Rows after the last norm -> logits over the vocabulary, as the language model itself computes them."""

    bias: Tensor | None

    def __init__(self, linear: nn.Module, scale: float, bias: Tensor | None = None, cap: float | None = None) -> None:
        """scale: factor on the rows; bias: [1, V], added to the logits; cap: c, after which they are c * tanh(logits / c)."""
        super().__init__()
        self.linear = linear
        self.scale, self.cap = scale, cap
        self.register_buffer("bias", bias)

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.linear(rows * self.scale if self.scale != 1.0 else rows)
        logits = logits if self.bias is None else logits + self.bias
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


class LatePart(nn.Module):
    """The late layers of every stream that has some, in order of dependence."""

    def __init__(self, streams: Mapping[str, LateStream]) -> None:
        super().__init__()
        for name, stream in streams.items():
            self.add_module(name, stream)
        self.names = tuple(streams)

    def forward(
        self,
        rows: Mapping[str, Tensor],
        lengths: Mapping[str, Tensor],
        memories: Mapping[str, tuple[Tensor, Tensor, Tensor]],
        leading: Mapping[str, Tensor] | None = None,
        read: Mapping[str, Tensor] | None = None,
        tasks: Mapping[str, Tensor | None] | None = None,
    ) -> dict[str, Tensor]:
        """Fused packed rows [N, D] and segment lengths [S] of each stream -> its rows after the last layer,
        before any norm.

        memories: for a stream that attends to another, the packed rows [M, D] and lengths [B] of that, and
        the number of this stream's segments that each of the B serves, [B]. leading: rows [p, D] that stand in
        front of every segment of a stream while it passes the late layers, and are then dropped. read: for a
        stream of which one row a segment is read, its place in the segment, int64 [S]; then its rows are [S, D],
        and the last layer computes no others where it can. tasks: the number of each segment's task, int64 [S], for
        tuners that read it.
        """
        first, some, known = leading or {}, read or {}, tasks or {}
        return {
            name: self.stream(name)(
                rows[name], lengths[name], memories.get(name), first.get(name), some.get(name), known.get(name)
            )
            for name in self.names
        }

    def layers_require_grad(self) -> None:
        """Let the late layers train, and nothing else of the stacks around them."""
        for name in self.names:
            for layer in self.stream(name).layers.values():
                layer.requires_grad_(True)

    def stream(self, name: str) -> LateStream:
        part = self.get_submodule(name)
        assert isinstance(part, LateStream)
        return part


@dataclass(frozen=True)
class LateModules:
    """What stage two takes from a pretrained model; everything is frozen, in eval mode, in one dtype."""

    late: LatePart | None
    norms: dict[str, nn.Module]
    """The pretrained final norm of each stream that has one."""
    projection: OutputProjection | None
    meeting: dict[str, Tensor]
    """The pretrained projection [P, D] of each stream that meets others, see StreamTable.projection."""


def build_late(
    table: BackboneTable,
    config: Any,
    open_weights: Callable[[str], bytes],
    late: int,
    *,
    dropout: bool = False,
    dtype: torch.dtype = torch.float32,
) -> LateModules:
    """The last `late` layers of each late stream, the final norms and the output projection, from the files
    of `late_weights`.

    Opens the files of these layers and `rest.safetensors`, no others. dropout: whether late layers drop out
    in train mode. Raises ModelError where a tensor is missing, or `late` leaves no early layer.
    """
    table.check_late(config, late)
    names = [REST]
    for stream in table.late_streams:
        depth = table.depth(config, stream.name)
        names += [block_file(stream.name, index) for index in range(depth - late, depth)]
    with torch.device("meta"):
        model = getattr(transformers, table.auto_class).from_config(
            config, attn_implementation=table.attention, dtype=dtype, **table.options
        )
    model.eval().requires_grad_(False)
    for name in names:
        _assign(model, name, open_weights(name), dtype)
    norms = {stream.name: model.get_submodule(stream.norm) for stream in table.streams if stream.norm is not None}
    projection = None
    if table.head is not None:
        bias = model.get_buffer(table.head_bias) if table.head_bias is not None else None
        projection = OutputProjection(
            model.get_submodule(table.head), table.head_scale(config), bias, table.head_cap(config)
        )
    _check_resolved([*norms.values(), *([projection] if projection else [])], REST)
    meeting = {}
    for stream in table.streams:
        if stream.projection is not None:
            _check_resolved([model.get_submodule(stream.projection)], REST)
            meeting[stream.name] = model.get_parameter(f"{stream.projection}.weight").detach()
    streams = {}
    if late:
        for stream in table.late_streams:
            first = table.depth(config, stream.name) - late
            _check_resolved([model.get_submodule(path) for path in stream.kept], REST)
            for index in range(first, table.depth(config, stream.name)):
                _check_resolved([model.get_submodule(f"{stream.layers}.{index}")], block_file(stream.name, index))
            streams[stream.name] = LateStream(stream, model.get_submodule(stream.stack), first, dropout)
    return LateModules(LatePart(streams) if streams else None, norms, projection, meeting)


def _assign(model: nn.Module, file: str, data: bytes, dtype: torch.dtype) -> None:
    try:
        tensors = safetensors.torch.load(data)
        cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        unknown = model.load_state_dict(cast, strict=False, assign=True).unexpected_keys
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"the weights file {file} does not fit the model's config: {' '.join(str(error).split())}"
        ) from None
    if unknown:
        raise ModelError(f"the weights file {file} holds {unknown[0]}, which this model does not have; extract again")
    model.requires_grad_(False)


def _check_resolved(modules: list[nn.Module], file: str) -> None:
    """Raises ModelError where a tensor that is needed has no value."""
    for module in modules:
        for name, tensor in module.state_dict().items():
            if tensor.is_meta:
                raise ModelError(f"the weights file {file} lacks {name} of a {type(module).__name__}; extract again")
