"""Rows of a task -> token ids, candidate answers, content hashes: one pass over a split, in bounded memory.

Form `pair` gives the text columns to the tokenizer as one text or a pair, for an encoder with a head. Form `template`
fills the task's template, for a causal decoder with a head, whose tokenizer knows no pairs. Form `text_to_text` fills
the same template and adds target texts, for an encoder-decoder: every label text of a closed set (the candidates),
or the gold text alone of an open one. Form `continuation` does the same for a causal decoder, whose answers stand behind
the text (prompts.py); since each candidate then brings the text's rows again, training rows have the gold text alone.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Literal, Protocol

import pyarrow as pa

from ..storage.errors import DataError
from ..storage.keys import canonical, digest
from .answer_texts import right_targets, target_ids
from .prompts import prompts
from .sources.contract import Batch, Source
from .tasks import Task, label_of

Form = Literal["pair", "template", "text_to_text", "continuation"]

RELATIVE_POSITIONS_LIMIT: Final = 512
"""Default of `max_length` where positions are relative and set no limit."""
LONGEST_BY_DEFAULT: Final = 1024
"""Greatest default of `max_length`, however many positions a model has."""
HASH_DIGITS: Final = 32

SCHEMA: Final = pa.schema(
    [
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("group_id", pa.string()),
        pa.field("view", pa.int32(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("label", pa.float64()),
        pa.field("gold", pa.int32(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("token_type_ids", pa.list_(pa.int32())),
        pa.field("target_ids", pa.list_(pa.list_(pa.int32()))),
    ]
)
"""Columns of `encode`; one row an example, in source order."""


class Tokenizer(Protocol):
    """What is used of a tokenizer of `transformers`."""

    is_fast: bool
    model_max_length: int
    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, *args: Any, **options: Any) -> Any: ...

    def num_special_tokens_to_add(self, pair: bool = False) -> int: ...


@dataclass
class EncodeStats:
    """Counts of one split, filled while `encode` runs; `tokens` and `longest` are of ids after truncation."""

    rows: int = 0
    truncated: int = 0
    tokens: int = 0
    longest: int = 0
    unlabelled: int = 0
    marks: frozenset[int] = frozenset()
    """Numbers of rows after which the digest so far is kept in `marked`."""
    marked: dict[int, str] = field(default_factory=dict)
    _hash: Any = field(default_factory=hashlib.sha256, repr=False)

    @property
    def data_digest(self) -> str:
        """sha256 over the content hashes so far, in source order: equal data has an equal digest."""
        return str(self._hash.hexdigest())

    def add(self, content_hash: str, length: int, truncated: bool, labelled: bool) -> None:
        """Count one row."""
        self.rows += 1
        self.truncated += truncated
        self.tokens += length
        self.longest = max(self.longest, length)
        self.unlabelled += not labelled
        self._hash.update(content_hash.encode("ascii"))
        if self.rows in self.marks:
            self.marked[self.rows] = self.data_digest


@dataclass(frozen=True)
class Tokens:
    """Token ids of some rows; `types` is None unless the tokenizer gives token types and rows are pairs."""

    ids: list[list[int]]
    types: list[list[int]] | None
    truncated: list[bool]


def default_max_length(tokenizer: Tokenizer, positions: int | None) -> int:
    """Tokens a row may have: the tokenizer's limit, the model's `positions` (None: relative, 512), at most 1,024."""
    return min(int(tokenizer.model_max_length), positions or RELATIVE_POSITIONS_LIMIT, LONGEST_BY_DEFAULT)


def tokenize(
    texts: Sequence[Sequence[str]], task: Task, tokenizer: Tokenizer, *, form: Form, max_length: int
) -> Tokens:
    """Token ids of rows of texts (one text a text column), special tokens included, at most `max_length` each.

    A pair that is too long loses tokens of its longer text first. A text that has no tokens, since it is empty and the
    tokenizer adds none, gets the one that begins or ends texts.

    Raises DataError where `max_length` leaves no room for text, or a text has no tokens and no such token is there.
    """
    if form == "continuation":
        filled = [task.text_format.format(*row) for row in texts]
        ids, encoded = prompts(filled, tokenizer, max_length)
        return Tokens(ids, None, _truncated(encoded, [filled], tokenizer, add_special_tokens=False))
    pairs = form == "pair" and len(task.columns) == 2
    room = max_length - tokenizer.num_special_tokens_to_add(pair=pairs)
    if room < 1 + pairs:
        raise DataError(
            f"a length of {max_length} tokens leaves no room for text beside the special tokens; "
            f"at least {max_length - room + 1 + pairs} are needed"
        )
    if pairs:
        columns = [[row[0] for row in texts], [row[1] for row in texts]]
    elif form == "pair":
        columns = [[" ".join(row) for row in texts]]
    else:
        columns = [[task.text_format.format(*row) for row in texts]]
    encoded = tokenizer(*columns, truncation="longest_first", max_length=max_length, return_attention_mask=False)
    ids = [row or _empty_text(tokenizer) for row in encoded["input_ids"]]
    types = encoded["token_type_ids"] if pairs and "token_type_ids" in encoded else None
    return Tokens(ids, types, _truncated(encoded, columns, tokenizer))


def encode(
    source: Source,
    split: str,
    task: Task,
    tokenizer: Tokenizer,
    *,
    form: Form,
    max_length: int,
    stats: EncodeStats | None = None,
    label_required: bool = True,
) -> Iterator[pa.RecordBatch]:
    """Rows of a split as record batches of `SCHEMA`, in source order, at most 1,024 a batch.

    `source_id` is the row's number in the source's own split, `content_hash` 32 hexadecimal digits over the
    texts and the label, `label` the class number or score (null without label), `gold` the number of the right
    candidate in `target_ids` (0 where it is alone, -1 without label). `target_ids` is null where answers are no text; a row
    without label has no candidate where the right one would be alone. `stats` is filled on the way. Without `label_required` the
    label column may be absent.

    Raises DataError for a missing column, a text that is null, or a label outside the set, with its row.
    """
    stats = stats if stats is not None else EncodeStats()
    labelled = label_required or task.label_column in source.columns(split)
    wanted = [*task.columns, task.label_column] if labelled else list(task.columns)
    in_text = form in ("text_to_text", "continuation")
    alone = task.label_texts is None or (form == "continuation" and split == "train")
    candidates = None
    if in_text and not alone:
        assert task.label_texts is not None
        candidates = target_ids(task.label_texts, tokenizer, form)
    row_numbers = iter(source.row_numbers(split))
    origin = source.origin(split)
    for batch in source.batches(split, wanted):
        size = len(batch[wanted[0]])
        rows = list(islice(row_numbers, size))
        texts = _texts(batch, task, source.name, origin, rows)
        values = batch[task.label_column] if labelled else [None] * size
        labels = [
            label_of(task, value, source=source.name, split=origin, row=row)
            for value, row in zip(values, rows, strict=True)
        ]
        tokens = tokenize(texts, task, tokenizer, form=form, max_length=max_length)
        hashes = [content_hash(text, label) for text, label in zip(texts, labels, strict=True)]
        for number_, ids in enumerate(tokens.ids):
            stats.add(hashes[number_], len(ids), tokens.truncated[number_], labels[number_] is not None)
        targets: list[Any] = [candidates] * size
        if in_text and alone:
            targets = right_targets(labels, task, tokenizer, form)
        types: list[Any] = [None] * size if tokens.types is None else list(tokens.types)
        columns = {
            "source_id": [str(row) for row in rows],
            "group_id": [None] * size,
            "view": [0] * size,
            "task": [task.name] * size,
            "content_hash": hashes,
            "label": labels,
            "gold": [_gold(label, task, in_text and alone) for label in labels],
            "input_ids": tokens.ids,
            "token_type_ids": types,
            "target_ids": targets,
        }
        yield pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def text_key_fields(task: Task, tokenizer: Tokenizer, *, form: Form, max_length: int) -> dict[str, str | int]:
    """What the token ids of a store depend on beside the data, as flat fields of its identity."""
    return {
        "text.form": form,
        "text.format": task.text_format,
        "text.columns": json.dumps(task.columns, ensure_ascii=False),
        "text.labels": json.dumps([task.labels, task.label_texts], ensure_ascii=False),
        "text.max_length": max_length,
        "text.tokenizer": tokenizer_digest(tokenizer),
    }


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of what a tokenizer does, without its name or place, or the state that calls leave behind."""
    if tokenizer.is_fast:
        document = json.loads(tokenizer.backend_tokenizer.to_str())
        # an earlier call leaves its truncation and padding in the serialised form
        return digest({**document, "truncation": None, "padding": None})
    special: Mapping[str, Any] = tokenizer.special_tokens_map
    return digest(
        {
            "class": type(tokenizer).__name__,
            "vocabulary": tokenizer.get_vocab(),
            "special": {name: str(token) for name, token in special.items()},
        }
    )


def _empty_text(tokenizer: Tokenizer) -> list[int]:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [token]
    raise DataError("a text is empty, and the tokenizer has no token that begins or ends texts; leave empty texts out")


def _truncated(encoded: Any, columns: Sequence[list[str]], tokenizer: Tokenizer, **options: Any) -> list[bool]:
    """Which rows lost tokens."""
    if tokenizer.is_fast:
        return [bool(encoding.overflowing) for encoding in encoded.encodings]
    # a slow tokenizer does not tell, so what it would have given is counted
    whole = tokenizer(*columns, truncation=False, return_attention_mask=False, verbose=False, **options)["input_ids"]
    return [len(ids) < len(full) for ids, full in zip(encoded["input_ids"], whole, strict=True)]


def _gold(label: int | float | None, task: Task, alone: bool) -> int:
    if label is None:
        return -1
    return int(label) if task.kind == "classification" and not alone else 0


def content_hash(texts: Sequence[str], label: int | float | None) -> str:
    """What a row is known by: 32 hexadecimal digits over its texts and its label."""
    document = {"texts": list(texts), "label": label}
    return hashlib.sha256(canonical(document)).hexdigest()[:HASH_DIGITS]


def _texts(batch: Batch, task: Task, source: str, split: str, rows: Sequence[int]) -> list[tuple[str, ...]]:
    """The rows' texts, one a text column. Numbers are written out; anything else that is no text is refused."""
    for column in task.columns:
        for position, value in enumerate(batch[column]):
            if not isinstance(value, str | int | float):
                raise DataError(
                    f"{source}: split {split!r}, row {rows[position]}: column {column!r} holds "
                    f"{'no value' if value is None else type(value).__name__}, but text is wanted"
                )
    return [tuple(map(str, texts)) for texts in zip(*(batch[column] for column in task.columns), strict=True)]
