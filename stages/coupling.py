"""Objectives that compare the examples of a batch with each other, where several ranks hold a slice of it each.

Every rank gathers what the others' models gave and computes the loss of the whole batch. Its own rows alone carry a
gradient, so that the sum over ranks of what they learn is the gradient of one loss: a rank counts the loss as its share,
and its rows' gradient as often as there are shares. What follows the rows (a temperature, say) is then counted once as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from .methods.contract import Outputs, Packed, Pair, Targets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from .ranks import Ranks


@dataclass(frozen=True)
class WholeBatch:
    """What the models of all ranks gave for one global batch."""

    outputs: Outputs
    targets: Targets
    shares: int
    """Ranks that hold a slice of it, each of which counts the loss once."""


def whole_batch(
    outputs: Outputs | None, targets: Targets, ranks: Ranks, *, head: bool, features: bool
) -> WholeBatch | None:
    """Rows of every rank in the order of the global batch; `head` and `features` say which of them are needed.

    outputs: None on a rank whose slice is empty, which takes part and gets None.
    """
    own = None if outputs is None else list(_tensors(outputs, targets, head=head, features=features))
    found = ranks.rows(own)
    if outputs is None or own is None:
        return None
    parts = [_counted(own, len(found)) if rank == ranks.rank else tensors for rank, tensors in found]
    joined = iter([torch.cat(each) for each in zip(*parts, strict=True)])
    given = _filled_outputs(outputs, joined, head=head, features=features)
    return WholeBatch(given, _filled_targets(targets, joined), len(found))


def _tensors(outputs: Outputs, targets: Targets, *, head: bool, features: bool) -> Iterator[Tensor]:
    """Everything that is gathered, rows in the first dimension; `_filled_*` take it in the same order."""
    if head:
        yield from (outputs.head.first, outputs.head.second) if isinstance(outputs.head, Pair) else (outputs.head,)
    if features:
        for packed in (*outputs.fused.values(), *outputs.taps.values()):
            yield from (packed.taps.transpose(0, 1),) if isinstance(packed.taps, torch.Tensor) else packed.taps
            yield packed.lengths
    known = (targets.gold, targets.score, targets.tokens, *(targets.groups or ()))
    yield from (tensor for tensor in known if tensor is not None)


def _counted(own: list[Tensor], shares: int) -> list[Tensor]:
    """The same tensors, through which a gradient counts `shares` times."""
    found = []
    for tensor in own:
        alias = tensor.view_as(tensor)
        if alias.requires_grad:
            alias.register_hook(lambda gradient: gradient * shares)  # type: ignore[no-untyped-call]
        found.append(alias)
    return found


def _filled_outputs(outputs: Outputs, joined: Iterator[Tensor], *, head: bool, features: bool) -> Outputs:
    given = outputs.head
    if head:
        given = replace(given, first=next(joined), second=next(joined)) if isinstance(given, Pair) else next(joined)
    if not features:
        return Outputs(head=given)
    sides = [
        {name: _filled_rows(packed, joined) for name, packed in side.items()} for side in (outputs.fused, outputs.taps)
    ]
    return Outputs(head=given, fused=sides[0], taps=sides[1])


def _filled_rows(packed: Packed, joined: Iterator[Tensor]) -> Packed:
    if isinstance(packed.taps, torch.Tensor):
        return replace(packed, taps=next(joined).transpose(0, 1), lengths=next(joined), owners=None, tasks=None)
    taps = tuple(next(joined) for _ in packed.taps)
    return replace(packed, taps=taps, lengths=next(joined), owners=None, tasks=None)


def _filled_targets(targets: Targets, joined: Iterator[Tensor]) -> Targets:
    gold, score, tokens = (
        None if known is None else next(joined) for known in (targets.gold, targets.score, targets.tokens)
    )
    groups = None if targets.groups is None else (next(joined), next(joined))
    return Targets(gold=gold, score=score, tokens=tokens, groups=groups)
