"""Orders that are pure functions of their keys: the same on every machine, for ever.

Philox is counter based and its raw stream is fixed by NumPy's compatibility promise, which shuffling
functions are not; so a permutation is the stable argsort of raw 64-bit draws.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import keys


def permutation(count: int, *words: str | int) -> NDArray[np.int64]:
    """A permutation of range(count), fixed by `words`."""
    key = int.from_bytes(hashlib.sha256(keys.canonical(list(words))).digest()[:16], "little")
    draws = np.random.Philox(key=key).random_raw(count)
    return np.argsort(np.asarray(draws, dtype=np.uint64), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Block:
    """Some row groups that are read together, and their examples in the order of training."""

    groups: NDArray[np.int64]
    examples: NDArray[np.int64]


class EpochOrder:
    """The order of one epoch: row groups permuted, cut into blocks of `window` groups, examples permuted in a
    block.

    `groups` are the row groups served, `first_examples` [groups of the split + 1] the example each group
    begins with. Without `shuffle` it is written order, in the same blocks.
    """

    def __init__(
        self,
        groups: NDArray[np.int64],
        first_examples: NDArray[np.int64],
        *,
        order_key: str,
        seed: int,
        epoch: int,
        window: int,
        shuffle: bool = True,
    ) -> None:
        self._words = (order_key, seed, epoch)
        self._first_examples = first_examples
        self._window = window
        self._shuffle = shuffle
        self._groups = groups[permutation(len(groups), "groups", *self._words)] if shuffle else groups
        counts = np.diff(first_examples)[self._groups]
        ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        cuts = np.append(np.arange(0, len(groups), window), len(groups))
        self.starts: NDArray[np.int64] = ends[cuts]
        """Place in the epoch of each block's first example, then the number of examples: [blocks + 1]."""

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.starts) - 1

    def block(self, number: int) -> Block:
        """Block `number` of the epoch."""
        groups = self._groups[number * self._window : (number + 1) * self._window]
        spans = [np.arange(self._first_examples[g], self._first_examples[g + 1]) for g in groups]
        examples = np.concatenate(spans).astype(np.int64)
        if self._shuffle:
            examples = examples[permutation(len(examples), "examples", *self._words, number)]
        return Block(groups, examples)
