"""Pictures with captions as inputs: one example is a picture and all of its captions, each a segment of the text stream.

Token ids of the captions are kept in the table of examples (`target_ids`, one list a segment), pictures are read again for
the forward. `group_id` is the digest of the picture: rows that show the same picture belong together.
"""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from ..storage import Ragged
from ..storage.errors import DataError
from ..storage.keys import canonical
from .inputs import Batches, Inputs
from .picture_inputs import PictureBatches, PictureInputs
from .pictures import check, decode
from .sources.contract import Picture
from .text import HASH_DIGITS, SCHEMA, EncodeStats, text_key_fields, tokenize
from .tokens import TokenBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from .load import LoadedModel
    from .sources.contract import Source
    from .spool import Spool
    from .tasks import Task


class PairInputs(Inputs):
    """Pictures by the model's image processor, captions by its tokenizer. max_length: of a caption, in tokens."""

    def __init__(self, loaded: LoadedModel, max_length: int) -> None:
        """Raises ModelError where the processor makes what the model does not take."""
        self.tokenizer, self.max_length = loaded.tokenizer, max_length
        self.pictures = PictureInputs(loaded)

    def encode(
        self, source: Source, split: str, task: Task, stats: EncodeStats | None = None
    ) -> Iterator[pa.RecordBatch]:
        """`source_id` is the row's number in the source's own split, `group_id` 32 hexadecimal digits over the bytes of
        the picture, `content_hash` over these and the captions. There is no label, and every candidate is a right one.

        Raises DataError for a row without picture or caption, and for a picture that is none.
        """
        stats = stats if stats is not None else EncodeStats()
        row_numbers = iter(source.row_numbers(split))
        origin, (pictures, texts) = source.origin(split), task.columns
        for batch in source.batches(split, task.columns):
            rows = list(islice(row_numbers, len(batch[pictures])))
            captions, groups, hashes = [], [], []
            for picture, value, row in zip(batch[pictures], batch[texts], rows, strict=True):
                where = f"{source.name}: split {origin!r}, row {row}"
                if picture is None:
                    raise DataError(f"{where}: column {pictures!r} holds no picture")
                data = picture.read()
                check(picture, data)
                captions.append(_captions(value, f"{where}: column {texts!r}"))
                groups.append(picture_digest(data))
                hashes.append(_content_hash(groups[-1], captions[-1]))
            ids, cut = self._tokenized(captions, task)
            for number, caption_ids in enumerate(ids):
                length = self.pictures.max_length + sum(map(len, caption_ids))
                stats.add(hashes[number], length, cut[number], True)
            columns: dict[str, list[Any]] = {
                "source_id": [str(row) for row in rows],
                "group_id": groups,
                "view": [0] * len(rows),
                "task": [task.name] * len(rows),
                "content_hash": hashes,
                "label": [None] * len(rows),
                "gold": [0] * len(rows),
                "input_ids": [[]] * len(rows),
                "token_type_ids": [None] * len(rows),
                "target_ids": ids,
            }
            yield pa.RecordBatch.from_pydict(columns, schema=SCHEMA)

    def input_lengths(self, spool: Spool) -> NDArray[np.int32]:
        lengths = Ragged(*spool.target_lengths()).totals() + self.pictures.max_length
        return np.asarray(lengths, np.int32)

    def segments(self, spool: Spool, tokens: Literal["input", "target", "continued", "pixels"]) -> Ragged:
        if tokens == "pixels":
            return Ragged(self.pictures.input_lengths(spool), np.ones(spool.rows, np.int32))
        return Ragged(*spool.target_lengths())

    def batches(self, source: Source, task: Task) -> Batches:
        return PairBatches(self.pictures, source, task)

    def raw(self, rows: Sequence[Sequence[str | Picture]], task: Task) -> TokenBatch:
        """Pictures, each with one caption."""
        shown = [value if isinstance(value, Picture) else Picture(value, Path(value)) for value, _ in rows]
        return self.apart(shown, [str(text) for _, text in rows], task)

    def apart(self, pictures: Sequence[Picture], texts: Sequence[str], task: Task) -> TokenBatch:
        """Pictures and captions that need not belong together, as many as there are of each. A side without any gets one of
        no meaning, since both towers run.
        """
        from PIL import Image

        images = []
        for picture in pictures:
            data = picture.read()
            check(picture, data)
            images.append(decode(picture, data))
        ids, _ = self._tokenized([[text] for text in texts or ("a",)], task)
        pixels = self.pictures.pixels(images or [Image.new("RGB", self.pictures.size[::-1])])
        return TokenBatch([caption for (caption,) in ids], pixels=pixels)

    def key_fields(self, task: Task) -> dict[str, str | int]:
        text = text_key_fields(task, self.tokenizer, form="template", max_length=self.max_length)
        return {**text, **self.pictures.key_fields(task)}

    def _tokenized(self, captions: Sequence[Sequence[str]], task: Task) -> tuple[list[list[list[int]]], list[bool]]:
        """Token ids of the captions of each row, and whether one of them was cut."""
        texts = [[caption] for of_row in captions for caption in of_row]
        tokens = tokenize(texts, task, self.tokenizer, form="template", max_length=self.max_length)
        ids, cut = iter(tokens.ids), iter(tokens.truncated)
        return (
            [list(islice(ids, len(of_row))) for of_row in captions],
            [any(list(islice(cut, len(of_row)))) for of_row in captions],
        )


class PairBatches(PictureBatches):
    """Batches of pixels and of the captions' token ids, example by example."""

    known_by: ClassVar[str] = "group_id"

    def lengths(self, rows: pa.Table) -> NDArray[np.int64]:
        """Rows of the picture, and of the captions padded to the longest."""
        captions = rows["target_ids"].to_pylist()
        texts = np.asarray([len(ids) * max(map(len, ids)) for ids in captions], np.int64)
        return super().lengths(rows) + texts

    def texts(self, rows: pa.Table, chosen: NDArray[np.int64]) -> Sequence[Sequence[int]]:
        return [ids for captions in rows["target_ids"].take(chosen).to_pylist() for ids in captions]

    def fingerprint(self, data: bytes, label: float | None) -> str:
        return picture_digest(data)


def shared_pictures(spools: Mapping[str, Spool]) -> dict[str, int]:
    """Of each split but train, how many rows show a picture that train shows too; splits without such are left out."""
    if "train" not in spools:
        return {}
    known = _groups(spools["train"])
    found = {name: int(np.isin(_groups(spool), known).sum()) for name, spool in spools.items() if name != "train"}
    return {name: count for name, count in found.items() if count}


def _groups(spool: Spool) -> NDArray[np.uint64]:
    """The first 16 digits of each row's group: 8 bytes are enough to tell pictures apart."""
    chunks = (chunk.to_pylist() for chunk in spool.column("group_id").chunks)
    return np.asarray([int(group[:16], 16) for chunk in chunks for group in chunk], np.uint64)


def picture_digest(data: bytes) -> str:
    """What all rows that show one picture share."""
    return hashlib.sha256(data).hexdigest()[:HASH_DIGITS]


def _captions(value: Any, where: str) -> list[str]:
    """One caption, or a list of them. Raises DataError."""
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not captions or not all(isinstance(text, str) for text in captions):
        raise DataError(f"{where} holds {value!r}; a caption or a list of captions is wanted")
    if not all(text.strip() for text in captions):
        raise DataError(f"{where} holds an empty caption; leave it out")
    return captions


def _content_hash(group: str, captions: Sequence[str]) -> str:
    document = {"picture": group, "captions": list(captions)}
    return hashlib.sha256(canonical(document)).hexdigest()[:HASH_DIGITS]
