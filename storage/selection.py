"""What a stream reads of a split: taps, segments and committed row groups, and how large all of it is."""

from collections.abc import Mapping
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from . import keys
from .blocks import Reading
from .budget import Sizes, StreamShape
from .errors import InvalidInput
from .order import BatchSize
from .placement import SegmentChoice, some_groups
from .reader import Store
from .shards import CRC_BYTES

Choice = Literal["gold", "all"]

_CHOICES: Final = ("gold", "all")


class Selection:
    """groups: row groups that are committed, ascending. order_key: of the split, or of these groups of it.

    Raises DataError for streams or taps that the store lacks, InvalidInput where nothing would be read.
    """

    def __init__(
        self, store: Store, split: str, taps: dict[str, tuple[int, ...]], segments: Mapping[str, Choice] | None
    ) -> None:
        choices = dict(segments or {})
        for stream, choice in choices.items():
            if stream not in taps or choice not in _CHOICES:
                raise InvalidInput(f"segments of {stream!r}: {choice!r}: gold or all, of a stream that is read")
        self._store, self._split, self._taps = store, split, taps
        self._plans = {stream: store.stream_plan(split, stream, numbers) for stream, numbers in taps.items()}
        if not taps or not all(taps.values()):
            raise InvalidInput("taps: at least one stream with at least one tap is needed")
        self.groups = store.groups(split)
        self.order_key = self._served_key()
        table = store.examples(split)
        self.first_examples = table.first_examples
        gold = {stream: table.gold if choices.get(stream) == "gold" else None for stream in taps}
        self._chosen = {s: SegmentChoice(table.lengths[s], self.first_examples, gold[s]) for s in taps}
        self._whole = {s: SegmentChoice(lengths, self.first_examples, None) for s, lengths in table.lengths.items()}
        chunks = {s: [store.chunk_bytes(plan, tap) for tap in taps[s]] for s, plan in self._plans.items()}
        self._row_bytes = {s: tuple(n // plan.chunk_rows for n in chunks[s]) for s, plan in self._plans.items()}
        self._chunk_bytes = {s: tuple(count + CRC_BYTES for count in counts) for s, counts in chunks.items()}

    def reading(self, rank: int, ranks: int) -> Reading:
        """What a rank reads, nothing of it yet."""
        groups = self._store.split(self._split).groups
        return Reading(
            store=self._store,
            split=self._split,
            taps=self._taps,
            choices=self._chosen,
            row_bytes=self._row_bytes,
            chunk_bytes=self._chunk_bytes,
            rank=rank,
            ranks=ranks,
            verified={(s, tap): np.zeros(groups, np.bool_) for s, numbers in self._taps.items() for tap in numbers},
        )

    def sizes(self, batch: BatchSize, ranks: int) -> Sizes:
        """How much memory reading it takes."""
        shapes = {}
        for stream, numbers in self._taps.items():
            whole = max(self._chunk_bytes[stream])
            most = max(self._store.reading_bytes(self._plans[stream], tap) for tap in numbers)
            shapes[stream] = StreamShape(self._row_bytes[stream], whole, most - whole)
        return Sizes(self.groups, self.first_examples, self._chosen, shapes, batch, ranks)

    def tokens(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each example of some row groups, over all streams and segments of the store."""
        counts: NDArray[np.int64] = np.sum([choice.rows(groups) for choice in self._whole.values()], axis=0)
        return counts

    def require_longest(self, batch_tokens: int) -> None:
        """Raise InvalidInput where an example is longer than a batch may be."""
        longest = max(int(self.tokens(some).max(initial=0)) for some in some_groups(self.groups, self.first_examples))
        if longest > batch_tokens:
            raise InvalidInput(
                f"batch_tokens is {batch_tokens}: the longest example of {self._split} has {longest} tokens"
            )

    def _served_key(self) -> str:
        plan = self._store.split(self._split)
        if len(self.groups) == plan.held_groups:
            return plan.order_key
        if not len(self.groups):
            raise InvalidInput(f"{self._store.root}: no unit of {self._split} is committed yet, nothing can be read")
        return keys.digest([plan.order_key, self.groups.tolist()])
