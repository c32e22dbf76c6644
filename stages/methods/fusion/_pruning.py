"""The part of a pretrained block that a narrower one starts as, ranked by squared gradients (LST, arXiv 2206.06522,
section 3.3)."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..contract import Layer

_READS_STATE = ("query", "key", "value", "ffn_in", "ffn_gate", "cross_query", "cross_key", "cross_value")
_WRITES_STATE = ("out", "ffn_out", "cross_out")

Block = Mapping[str, nn.Module]
"""Modules of a pretrained block by role."""
Squares = Mapping[int, Tensor]
"""Summed squared gradients, by the id of the weight."""


def state_units(blocks: Iterable[Block], squares: Squares, keep: int) -> Tensor:
    """The `keep` units of the residual state that matter most over all blocks, ascending int64 [keep]."""
    total: Tensor | None = None
    for block in blocks:
        for roles, axis in ((_READS_STATE, 0), (_WRITES_STATE, 1)):
            for role in roles:
                if role in block:
                    part = _square(block[role], squares).sum(axis)
                    total = part if total is None else total + part
    assert total is not None
    return _largest(total, keep)


def prune_block(side: Layer, block: Block, squares: Squares, state: Tensor) -> None:
    """Fill a side block with the chosen units of the state and, of each head and of the feed-forward, the units that
    matter most; query and key of a head keep the same ones, so do value and out. Biases go with their units."""
    form = side.form
    for prefix in ("", "cross_") if form.memory else ("",):
        for readers, writers in ((("query", "key"), ()), (("value",), ("out",))):
            importance = sum(
                (_square(block[prefix + role], squares).sum(1) for role in readers),
                start=torch.zeros((), device=state.device),
            )
            for role in writers:
                importance = importance + _square(block[prefix + role], squares).sum(0)
            units = _units_of_heads(importance, form.heads, form.head_width)
            for role in readers:
                _copy(side, block, prefix + role, units, state)
            for role in writers:
                _copy(side, block, prefix + role, state, units)
        _copy_norm(side, block, "cross_norm" if prefix else "attention_norm", state)
    gates = ("ffn_gate",) if form.gated else ()
    importance = _square(block["ffn_out"], squares).sum(0)
    for role in ("ffn_in", *gates):
        importance = importance + _square(block[role], squares).sum(1)
    units = _largest(importance, form.ffn_width)
    for role in ("ffn_in", *gates):
        _copy(side, block, role, units, state)
    _copy(side, block, "ffn_out", state, units)
    _copy_norm(side, block, "ffn_norm", state)


def prune_rows(source: Tensor, shape: Sequence[int]) -> Tensor:
    """A table of which nothing is to be pruned. Raises ValueError where its shape is another."""
    if source.shape != tuple(shape):
        raise ValueError(f"a table of shape {tuple(source.shape)} is not one of {tuple(shape)}")
    return source


def _square(module: nn.Module, squares: Squares) -> Tensor:
    return squares[id(module.get_parameter("weight"))]


def _largest(importance: Tensor, keep: int) -> Tensor:
    return importance.topk(keep).indices.sort().values


def _units_of_heads(importance: Tensor, heads: int, keep: int) -> Tensor:
    """[H * k] -> the `keep` most important units of each head, one head after another, int64 [H * keep]."""
    by_head = importance.view(heads, -1)
    starts = torch.arange(heads, device=importance.device).unsqueeze(1) * by_head.shape[1]
    return (by_head.topk(keep, dim=1).indices.sort(dim=1).values + starts).flatten()


def _copy(side: Layer, block: Block, role: str, out: Tensor, into: Tensor) -> None:
    own, source = side.get_submodule(role), block[role]
    own.get_parameter("weight").copy_(source.get_parameter("weight")[out][:, into])
    if side.form.bias:
        own.get_parameter("bias").copy_(source.get_parameter("bias")[out])


def _copy_norm(side: Layer, block: Block, role: str, state: Tensor) -> None:
    for name, parameter in side.get_submodule(role).named_parameters():
        parameter.copy_(block[role].get_parameter(name)[state])
