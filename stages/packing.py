"""Packed rows and padded batches: valid tokens one after another, and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Padding:
    """How S segments of `lengths` lie in a batch padded to T tokens, on the right unless a mask says otherwise.

    mask: int64 [S, T], 1 where a token is; positions: int64 [N], the place of packed row n in the flattened
    [S * T].
    """

    mask: Tensor
    positions: Tensor

    def pad(self, rows: Tensor) -> Tensor:
        """Packed rows [N, D] -> [S, T, D], zero where no token is."""
        segments, longest = self.mask.shape
        flat = rows.new_zeros(segments * longest, rows.shape[-1]).index_copy(0, self.positions, rows)
        return flat.view(segments, longest, -1)

    def pack(self, padded: Tensor) -> Tensor:
        """[S, T, D] -> packed rows [N, D]."""
        return padded.flatten(0, 1).index_select(0, self.positions)


def padding_of(lengths: Tensor) -> Padding:
    """The padding of segments of `lengths` (int64 [S]) to the longest of them."""
    longest = int(lengths.max()) if len(lengths) else 0
    inside = torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)
    return padding_by(inside)


def padding_by(mask: Tensor) -> Padding:
    """The padding of a batch whose tokens are where `mask` [S, T] is not 0, on the left or on the right."""
    inside = mask != 0
    return Padding(mask=inside.long(), positions=inside.flatten().nonzero().squeeze(1))


def length_groups(lengths: Tensor, least: int = 16, ratio: float = 0.6) -> list[Tensor]:
    """Places of segments (int64 [S]) cut into groups of like length, so that padding each group wastes little.

    A group takes segments, longest first, while they are at least `ratio` of its longest or the group has fewer than `least`.
    Depends on the lengths alone.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    sizes, longest, count = [], 0, 0
    for length in lengths[order].tolist():
        if count >= least and length < ratio * longest:
            sizes.append(count)
            count = 0
        if count == 0:
            longest = length
        count += 1
    return list(torch.split(order, [*sizes, count])) if len(order) else []


def rows_of_segments(chosen: Tensor, lengths: Tensor) -> Tensor:
    """Packed rows (int64) of the chosen segments, one segment after another; `lengths` [S] are of all segments."""
    starts = (lengths.cumsum(0) - lengths)[chosen]
    counts = lengths[chosen]
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    return torch.arange(total, device=lengths.device) + torch.repeat_interleave(starts - (ends - counts), counts)


def last_rows(lengths: Tensor, counts: Tensor) -> Tensor:
    """Which packed rows are among the last `counts` [S] of their segment; `lengths` [S] are of all: bool [N]."""
    total = int(lengths.sum())
    left = torch.repeat_interleave(lengths.cumsum(0), lengths, output_size=total)
    left = left - torch.arange(total, device=lengths.device)  # rows from here to the segment's end, 1 at the last
    return left <= torch.repeat_interleave(counts, lengths, output_size=total)


def padded_ids(ids: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids -> (padded on the right with `pad`, int64 [S, T]; lengths int64 [S])."""
    lengths = torch.tensor([len(item) for item in ids], dtype=torch.int64)
    longest = int(lengths.max()) if len(ids) else 0
    padded = torch.full((len(ids), longest), pad, dtype=torch.int64)
    for row, item in zip(padded, ids, strict=True):
        row[: len(item)] = torch.tensor(item, dtype=torch.int64)
    return padded.to(device), lengths.to(device)
