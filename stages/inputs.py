"""How rows of a source become what a model reads: one form for texts, one for pictures, one for pairs of them.

A row becomes examples in the table of the store; rows of that table become the batches of a forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..storage import Ragged
from .text import encode, text_key_fields, tokenize
from .tokens import TokenBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from .load import LoadedModel
    from .sources.contract import Picture, Source
    from .spool import Spool
    from .tasks import Task
    from .text import EncodeStats, Form


class Batches(ABC):
    """Batches of a forward, from rows of an example table."""

    @abstractmethod
    def lengths(self, rows: pa.Table) -> NDArray[np.int64]:
        """Tokens of each row's input, [rows]."""

    @abstractmethod
    def batch(self, split: str, rows: pa.Table, chosen: NDArray[np.int64]) -> TokenBatch:
        """What some rows of a split give the model to read."""

    def forwards(self, split: str, rows: pa.Table, batch_tokens: int) -> Iterator[tuple[NDArray[np.int64], TokenBatch]]:
        """Every forward over some rows: the places of its rows, and its batch."""
        for chosen in forward_batches(self.lengths(rows), batch_tokens):
            yield chosen, self.batch(split, rows, chosen)


class Inputs(ABC):
    """One form of input. max_length: the longest input in tokens."""

    max_length: int

    @abstractmethod
    def encode(
        self, source: Source, split: str, task: Task, stats: EncodeStats | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Rows of a split as record batches of `text.SCHEMA`, in source order; `stats` is filled on the way."""

    @abstractmethod
    def input_lengths(self, spool: Spool) -> NDArray[np.int32]:
        """Tokens of each row's input, int32 [rows]."""

    def segments(self, spool: Spool, tokens: Literal["input", "target", "continued", "pixels"]) -> Ragged:
        """Tokens of every segment of a stream that reads `tokens`, in source order: one a row, or one a candidate."""
        read = self.input_lengths(spool)
        if tokens in ("target", "continued"):
            lengths, counts = spool.target_lengths()
            # the last token of an answer is predicted and not read
            return Ragged(lengths if tokens == "target" else np.repeat(read, counts) + lengths - 1, counts)
        return Ragged(read, np.ones(len(read), np.int32))

    def forward_tokens(self, spool: Spool) -> int:
        """Tokens that the forwards of all rows read, the amount of work."""
        return int(self.input_lengths(spool).sum())

    @abstractmethod
    def batches(self, source: Source, task: Task) -> Batches:
        """What makes batches of examples that `encode` made of this source."""

    @abstractmethod
    def raw(self, rows: Sequence[Sequence[str | Picture]], task: Task) -> TokenBatch:
        """A batch of rows that a user gives: texts, or pictures by the path of their file."""

    @abstractmethod
    def key_fields(self, task: Task) -> dict[str, str | int]:
        """What the inputs of a store depend on beside the data, as flat fields of its identity."""


class TokenBatches(Batches):
    """Batches of token ids, which the example table holds."""

    def __init__(self, continued: bool = False) -> None:
        """continued: each candidate answer of a row is read with the row's input in front."""
        self.continued = continued

    def lengths(self, rows: pa.Table) -> NDArray[np.int64]:
        read = input_lengths(rows)
        if not self.continued:
            return read
        answers = [[len(ids) - 1 for ids in item] for item in rows["target_ids"].to_pylist()]
        return np.asarray(
            [length * len(item) + sum(item) for length, item in zip(read, answers, strict=True)], np.int64
        )

    def batch(self, split: str, rows: pa.Table, chosen: NDArray[np.int64]) -> TokenBatch:
        return token_batch(rows, chosen)


class TextInputs(Inputs):
    """Texts, by the model's tokenizer."""

    def __init__(self, loaded: LoadedModel, form: Form, max_length: int) -> None:
        self.tokenizer, self.form, self.max_length = loaded.tokenizer, form, max_length

    def encode(
        self, source: Source, split: str, task: Task, stats: EncodeStats | None = None
    ) -> Iterator[pa.RecordBatch]:
        return encode(source, split, task, self.tokenizer, form=self.form, max_length=self.max_length, stats=stats)

    def input_lengths(self, spool: Spool) -> NDArray[np.int32]:
        return spool.input_lengths()

    def forward_tokens(self, spool: Spool) -> int:
        if self.form == "continuation":
            return int(self.segments(spool, "continued").values.sum())
        return super().forward_tokens(spool)

    def batches(self, source: Source, task: Task) -> Batches:
        return TokenBatches(continued=self.form == "continuation")

    def raw(self, rows: Sequence[Sequence[str | Picture]], task: Task) -> TokenBatch:
        texts = [[str(text) for text in row] for row in rows]
        tokens = tokenize(texts, task, self.tokenizer, form=self.form, max_length=self.max_length)
        return TokenBatch(tokens.ids, tokens.types)

    def key_fields(self, task: Task) -> dict[str, str | int]:
        return text_key_fields(task, self.tokenizer, form=self.form, max_length=self.max_length)


def forward_batches(lengths: NDArray[np.int64], batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Positions of the examples of each forward batch: sorted by length, then cut where padding would exceed
    `batch_tokens`.

    A function of the lengths alone: the composition of batches moves the last bits of a forward, so it belongs to the
    plan.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        # sorted ascending: the next example is the longest of the batch it would join
        if end == len(order) or (end - start + 1) * int(lengths[order[end]]) > batch_tokens:
            yield order[start:end]
            start = end


def token_batch(rows: pa.Table, chosen: NDArray[np.int64]) -> TokenBatch:
    """The token ids of some rows of an example table."""
    part = rows.take(chosen)
    types = part["token_type_ids"].to_pylist()
    targets = part["target_ids"].to_pylist()
    return TokenBatch(
        input_ids=part["input_ids"].to_pylist(),
        token_type_ids=None if any(item is None for item in types) else types,
        targets=None if all(item is None for item in targets) else [item or [] for item in targets],
    )


def input_lengths(rows: pa.Table) -> NDArray[np.int64]:
    """Tokens of each row's input, [rows]."""
    return np.asarray([len(ids) for ids in rows["input_ids"].to_pylist()], np.int64)
