"""A store that is there already, seen from the data that is asked for: what of it is the same, and what is to be added."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from ..storage import pack_part, with_part
from ..storage.ledger import Chain, find_chain, sound_plans
from ..storage.readers.local import LocalFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ..storage import PackedSplit, Ragged, SplitPlan
    from .text import EncodeStats

Taps = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Known:
    """The plans of the store that data and settings are held against."""

    chain: Chain

    def ends(self, split: str) -> tuple[int, ...]:
        """Examples of a stored split after each of its parts; none for a split that is not stored."""
        plan = self.chain.head.splits.get(split)
        if plan is None:
            return ()
        added = [part.examples for part in plan.parts]
        return tuple(accumulate([plan.examples - sum(added), *added]))

    def begins(self, split: str, stats: EncodeStats) -> bool:
        """Whether the rows of a split, counted in `stats` with `ends` as its marks, begin with those of the store."""
        ends = self.ends(split)
        return bool(ends) and stats.marked.get(ends[-1]) == self.chain.head.identity.get(f"data.{split}")

    def first_taps(self, split: str) -> Taps:
        """Taps that a stored split was begun with: its packing depends on them."""
        streams = self.chain.began(split).splits[split].streams
        return {name: stream.taps for name, stream in streams.items()}

    def joined(self, taps: Mapping[str, tuple[int, ...]]) -> Taps:
        """Taps that are asked for and those of the store; of a stream that the store lacks, those asked for."""
        found = {name: set(numbers) for name, numbers in taps.items()}
        for split in self.chain.head.splits.values():
            for name, stream in split.streams.items():
                found.setdefault(name, set()).update(stream.taps)
        return {name: tuple(sorted(numbers)) for name, numbers in found.items()}


def known_store(root: Path | None, plans: int | None = None) -> Known | None:
    """The store at `root`, as its first so many plans say; None where there is none."""
    if root is None or not root.is_dir():
        return None
    files = LocalFiles(root)
    if plans is None:
        chain = find_chain(files)
        return None if chain is None else Known(chain)
    found, _ = sound_plans(files, plans)
    return Known(Chain(found)) if found else None


def pack_parts(
    lengths: Mapping[str, Ragged],
    stats: EncodeStats,
    ends: tuple[int, ...],
    first: Callable[[Mapping[str, Ragged], str], PackedSplit],
    split_plan: Callable[[PackedSplit], SplitPlan],
    content_keys: Callable[[str], Mapping[str, str]],
    seed: int,
) -> tuple[SplitPlan, list[PackedSplit]]:
    """A split packed in parts that end after `ends` examples of the source and, where there are more, one part more.

    lengths: of all examples, in source order. first: packs the first part, from its lengths and the digest of its data;
    split_plan: the plan of that; content_keys: by stream, from the digest of the data up to the end of a part.
    """
    if stats.rows > ends[-1]:
        ends = (*ends, stats.rows)
    packed = first(_rows(lengths, 0, ends[0]), _digest(stats, ends[0]))
    plan, parts = split_plan(packed), [packed]
    for start, stop in pairwise(ends):
        data = _digest(stats, stop)
        part = pack_part(
            plan, _rows(lengths, start, stop), split=packed.split, first_source=start, seed=seed, source_key=data
        )
        plan = with_part(plan, part, content_keys(data))
        parts.append(part)
    return plan, parts


def _digest(stats: EncodeStats, rows: int) -> str:
    return stats.data_digest if rows == stats.rows else stats.marked[rows]


def _rows(lengths: Mapping[str, Ragged], start: int, stop: int) -> dict[str, Ragged]:
    chosen = np.arange(start, stop)
    return {name: ragged.take(chosen) for name, ragged in lengths.items()}
