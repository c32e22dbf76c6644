"""Orders that are pure functions of their keys: the same on every machine, for ever.

Philox is counter based and its raw stream is fixed by NumPy's compatibility promise, which shuffling
functions are not; so a permutation is the stable argsort of raw 64-bit draws.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from . import keys
from .ragged import cumulative, spans

TokensOf = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Row groups, ascending -> tokens of each of their examples, in written order."""


def permutation(count: int, *words: str | int) -> NDArray[np.int64]:
    """A permutation of range(count), fixed by `words`."""
    key = int.from_bytes(hashlib.sha256(keys.canonical(list(words))).digest()[:16], "little")
    draws = np.random.Philox(key=key).random_raw(count)
    return np.argsort(np.asarray(draws, dtype=np.uint64), kind="stable").astype(np.int64, copy=False)


@dataclass(frozen=True)
class BatchSize:
    """How batches are cut: so many examples, or so many padded tokens (examples times the longest of them)."""

    examples: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Piece:
    """What a block holds of one global batch: `count` examples from place `first` of the block on.

    offset: place in the batch of the first of them; size: examples of the whole batch.
    """

    batch: int
    first: int
    count: int
    offset: int
    size: int


@dataclass(frozen=True)
class Block:
    """Some row groups that are read together, ascending, their examples in the order of training, and how they are
    cut into batches.
    """

    groups: NDArray[np.int64]
    examples: NDArray[np.int64]
    pieces: list[Piece]


class EpochOrder:
    """The order of one epoch: row groups permuted, cut into blocks of `window` groups, examples permuted in a
    block.

    `groups` are the row groups served, `first_examples` [groups of the split + 1] the example each group
    begins with. Without `shuffle` it is written order, in the same blocks. Batches of examples run on from block to
    block; batches of tokens end with their block, in which examples of like length stand together (equal ones in the
    permuted order) and the batches are permuted once more.
    """

    def __init__(
        self,
        groups: NDArray[np.int64],
        first_examples: NDArray[np.int64],
        tokens_of: TokensOf,
        *,
        batch: BatchSize,
        order_key: str,
        seed: int,
        epoch: int,
        window: int,
        shuffle: bool = True,
    ) -> None:
        self._words = (order_key, seed, epoch)
        self._first_examples = first_examples
        self._tokens_of = tokens_of
        self._batch = batch
        self._window = window
        self._shuffle = shuffle
        self._groups = groups[permutation(len(groups), "groups", *self._words)] if shuffle else groups
        counts = first_examples[self._groups + 1] - first_examples[self._groups]
        cuts = np.append(np.arange(0, len(groups), window), len(groups))
        self.starts: NDArray[np.int64] = cumulative(counts)[cuts]
        """Place in the epoch of each block's first example, then the number of examples: [blocks + 1]."""

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.starts) - 1

    @property
    def batches(self) -> int:
        """Number of global batches."""
        if self._batch.examples is not None:
            return -(-int(self.starts[-1]) // self._batch.examples)
        return int(self._first_batches[-1])

    def block_of(self, batch: int) -> int:
        """The block in which a batch begins; the number of blocks for the one behind the last."""
        if batch >= self.batches:
            return len(self)
        if self._batch.examples is not None:
            return int(np.searchsorted(self.starts, batch * self._batch.examples, side="right")) - 1
        return int(np.searchsorted(self._first_batches, batch, side="right")) - 1

    def groups_of(self, number: int) -> NDArray[np.int64]:
        """Row groups of block `number`, ascending."""
        return np.sort(self._groups[number * self._window : (number + 1) * self._window])

    def block(self, number: int) -> Block:
        """Block `number` of the epoch."""
        taken = self._groups[number * self._window : (number + 1) * self._window]
        examples = spans(self._first_examples[taken], self._first_examples[taken + 1] - self._first_examples[taken])
        if self._shuffle:
            examples = examples[permutation(len(examples), "examples", *self._words, number)]
        groups = np.sort(taken)
        if self._batch.examples is not None:
            return Block(groups, examples, self._pieces(number, self._batch.examples))
        return self._by_tokens(number, groups, examples)

    def _pieces(self, number: int, batch: int) -> list[Piece]:
        start, stop, total = int(self.starts[number]), int(self.starts[number + 1]), int(self.starts[-1])
        pieces = []
        for index in range(start // batch, -(-stop // batch)):
            first, last = max(index * batch, start), min((index + 1) * batch, stop)
            size = min(batch, total - index * batch)
            if last > first:
                pieces.append(Piece(index, first - start, last - first, first - index * batch, size))
        return pieces

    def _by_tokens(self, number: int, groups: NDArray[np.int64], examples: NDArray[np.int64]) -> Block:
        tokens = self._tokens_of(groups)
        if self._shuffle:
            tokens = tokens[np.argsort(np.argsort(examples))]
            by_length = np.argsort(tokens, kind="stable")
            examples, tokens = examples[by_length], tokens[by_length]
        ends = self._cut(tokens)
        cuts = list(pairwise([0, *ends]))
        if self._shuffle:
            cuts = [cuts[i] for i in permutation(len(cuts), "batches", *self._words, number).tolist()]
        begun = int(self._first_batches[number])
        pieces = [Piece(begun + i, first, stop - first, 0, stop - first) for i, (first, stop) in enumerate(cuts)]
        return Block(groups, examples, pieces)

    def _cut(self, tokens: NDArray[np.int64]) -> list[int]:
        """Where batches of examples, in this order, end: as late as the budget of tokens allows."""
        most = self._batch.tokens
        assert most is not None
        ends, first, longest = [], 0, 0
        for place, count in enumerate(tokens.tolist()):
            longest = max(longest, count)
            if place > first and (place + 1 - first) * longest > most:
                ends.append(place)
                first, longest = place, count
        if len(tokens):
            ends.append(len(tokens))
        return ends

    @cached_property
    def _first_batches(self) -> NDArray[np.int64]:
        """The batch that each block begins with, then the number of batches; from lengths alone: [blocks + 1]."""
        counts = []
        for number in range(len(self)):
            tokens = self._tokens_of(self.groups_of(number))
            counts.append(len(self._cut(np.sort(tokens) if self._shuffle else tokens)))
        return cumulative(np.asarray(counts, dtype=np.int64))
