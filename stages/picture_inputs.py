"""Pictures as inputs: the store keeps which row of the source an example is, and reads that row again for the forward."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
import torch

from ..storage import Ragged
from ..storage.errors import DataError, ModelError
from ..storage.keys import canonical
from .augment import Augment
from .inputs import Batches, Inputs, forward_batches
from .maps import MapForm
from .pictures import check, decode
from .sources.contract import Picture
from .tasks import label_of
from .text import HASH_DIGITS, SCHEMA, EncodeStats
from .tokens import TokenBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from .load import LoadedModel
    from .sources.contract import Source
    from .spool import Spool
    from .tasks import Task

VIEWED_SPLIT: Final = "train"
"""Every view of a picture is stored of this split; of others the first alone, which is the picture itself."""
MOST_DECODERS: Final = 8
"""Threads that decode pictures, at most."""
_NO_SETTINGS: Final = frozenset({"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"})


class PictureInputs(Inputs):
    """Pictures, by the model's image processor.

    views: how many of each training picture; the first is the picture itself, `augment` makes the others, drawn by
    `seed`.
    """

    def __init__(self, loaded: LoadedModel, views: int = 1, augment: Augment | None = None, seed: int = 0) -> None:
        """Raises ModelError where the processor makes what the model does not take."""
        self.processor, self.views, self.augment, self.seed = loaded.processor, views, augment or Augment(), seed
        stream = next(stream for stream in loaded.table.streams if stream.tokens == "pixels")
        channels = getattr(stream.own_config(loaded.config), "num_channels", 3)
        if channels != 3:
            raise ModelError(f"{loaded.name} reads pictures of {channels} channels; only red, green and blue are given")
        self.size = self._processed_size(loaded.name)
        self.max_length = stream.picture_rows(loaded.config, *self.size)
        self.maps = loaded.table.map_form
        whole = loaded.table.pooled(MapForm()).stream(stream.name)
        self.forward_rows = whole.picture_rows(loaded.config, *self.size)
        """Rows that a forward counts a picture for: those of its last map before it is pooled any further."""

    def encode(
        self, source: Source, split: str, task: Task, stats: EncodeStats | None = None
    ) -> Iterator[pa.RecordBatch]:
        """`source_id` is the row's number in the source's own split, `content_hash` 32 hexadecimal digits over the
        bytes of the picture and the label, `group_id` the row again where it has several views. No token is stored.

        Raises DataError for a row without picture, one that is none, or a label outside the set.
        """
        stats = stats if stats is not None else EncodeStats()
        views = self.views if split == VIEWED_SPLIT else 1
        row_numbers = iter(source.row_numbers(split))
        origin, (column,) = source.origin(split), task.columns
        for batch in source.batches(split, [column, task.label_column]):
            rows = list(islice(row_numbers, len(batch[column])))
            labels = [
                label_of(task, value, source=source.name, split=origin, row=row)
                for value, row in zip(batch[task.label_column], rows, strict=True)
            ]
            hashes = []
            for picture, row, label in zip(batch[column], rows, labels, strict=True):
                if picture is None:
                    raise DataError(f"{source.name}: split {origin!r}, row {row}: column {column!r} holds no picture")
                data = picture.read()
                check(picture, data)
                hashes.append(_content_hash(data, label))
            for number, label in enumerate(labels):
                for _ in range(views):
                    stats.add(hashes[number], self.max_length, False, label is not None)
            ids = [str(row) for row in rows]
            columns: dict[str, list[Any]] = {
                "source_id": ids,
                "group_id": ids if views > 1 else [None] * len(ids),
                "task": [task.name] * len(ids),
                "content_hash": hashes,
                "label": labels,
                "gold": [-1 if label is None else int(label) if task.labels else 0 for label in labels],
                "input_ids": [[]] * len(ids),
                "token_type_ids": [None] * len(ids),
                "target_ids": [None] * len(ids),
            }
            repeated = {name: [value for value in values for _ in range(views)] for name, values in columns.items()}
            yield pa.RecordBatch.from_pydict({**repeated, "view": list(range(views)) * len(ids)}, schema=SCHEMA)

    def input_lengths(self, spool: Spool) -> NDArray[np.int32]:
        return np.full(spool.rows, self.forward_rows, np.int32)

    def segments(self, spool: Spool, tokens: Literal["input", "target", "continued", "pixels"]) -> Ragged:
        return Ragged(np.full(spool.rows, self.max_length, np.int32), np.ones(spool.rows, np.int32))

    def batches(self, source: Source, task: Task) -> Batches:
        return PictureBatches(self, source, task)

    def raw(self, rows: Sequence[Sequence[str | Picture]], task: Task) -> TokenBatch:
        images = []
        for (value,) in rows:
            picture = value if isinstance(value, Picture) else Picture(value, Path(value))
            data = picture.read()
            check(picture, data)
            images.append(decode(picture, data))
        return TokenBatch(pixels=self.pixels(images))

    def key_fields(self, task: Task) -> dict[str, str | int]:
        column = task.columns[0]
        drawn: dict[str, str | int] = {}
        if self.views > 1:
            drawn = {"image.augment": self.augment.name, "image.seed": self.seed}
        return {
            "image.column": column,
            "image.labels": json.dumps(task.labels, ensure_ascii=False),
            "image.views": self.views,
            "image.processor": type(self.processor).__name__,
            **{f"image.processor.{name}": value for name, value in _settings(self.processor).items()},
            **drawn,
            **({} if self.maps is None else {"image.maps": self.maps.name}),
        }

    def pixels(self, images: Sequence[Any]) -> Tensor:
        """RGB images -> [B, 3, height, width], float32."""
        found: Tensor = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return found

    def _processed_size(self, name: str) -> tuple[int, int]:
        """Height and width of what the processor makes, of a wide image and of a high one. Raises ModelError."""
        from PIL import Image

        sizes = {tuple(self.pixels([Image.new("RGB", size)]).shape[-2:]) for size in ((64, 48), (40, 72))}
        if len(sizes) > 1:
            raise ModelError(
                f"the image processor of {name} makes pictures of different sizes, and every picture needs the same "
                "number of patches; set a size of height and width, or a center crop, in its preprocessor_config.json"
            )
        ((height, width),) = sizes
        return height, width


class PictureBatches(Batches):
    """Batches of pixels, read again from the rows of the source that the example table names."""

    known_by: ClassVar[str] = "content_hash"
    """Column of the example table that tells whether a picture is still the one that was planned with."""

    def __init__(self, inputs: PictureInputs, source: Source, task: Task) -> None:
        self.inputs, self.source, self.column = inputs, source, task.columns[0]

    def lengths(self, rows: pa.Table) -> NDArray[np.int64]:
        return np.full(len(rows), self.inputs.forward_rows, np.int64)

    def batch(self, split: str, rows: pa.Table, chosen: NDArray[np.int64]) -> TokenBatch:
        """Raises DataError where a picture is not the one that was planned with, or cannot be decoded."""
        pixels = torch.cat([self._pixels(*named) for named in self._named(split, rows, chosen)])
        return TokenBatch(self.texts(rows, chosen), pixels=pixels)

    def forwards(self, split: str, rows: pa.Table, batch_tokens: int) -> Iterator[tuple[NDArray[np.int64], TokenBatch]]:
        """As ever, but by several threads, and pictures of the next forward while the one before runs."""
        decoders = ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_DECODERS), "sherl-cache decode")
        ahead: deque[tuple[NDArray[np.int64], list[Future[Tensor]]]] = deque()

        def first() -> tuple[NDArray[np.int64], TokenBatch]:
            chosen, coming = ahead.popleft()
            pixels = torch.cat([pixels.result() for pixels in coming])
            return chosen, TokenBatch(self.texts(rows, chosen), pixels=pixels)

        try:
            for chosen in forward_batches(self.lengths(rows), batch_tokens):
                named = self._named(split, rows, chosen)
                ahead.append((chosen, [decoders.submit(self._pixels, *item) for item in named]))
                if len(ahead) > 1:
                    yield first()
            while ahead:
                yield first()
        finally:
            decoders.shutdown(wait=True, cancel_futures=True)

    def texts(self, rows: pa.Table, chosen: NDArray[np.int64]) -> Sequence[Sequence[int]]:
        """Token ids that some rows give beside their pictures."""
        return ()

    def fingerprint(self, data: bytes, label: float | None) -> str:
        """What the column `known_by` holds of a picture with this label."""
        return _content_hash(data, label)

    def _named(
        self, split: str, rows: pa.Table, chosen: NDArray[np.int64]
    ) -> Iterator[tuple[Picture, int, str, float]]:
        """Picture, view, fingerprint and label of some rows."""
        part = rows.take(chosen)
        numbers = [int(number) for number in part["source_id"].to_pylist()]
        pictures = self.source.take(split, self.column, numbers)
        columns = (part[name].to_pylist() for name in ("view", self.known_by, "label"))
        return zip(pictures, *columns, strict=True)

    def _pixels(self, picture: Picture, view: int, fingerprint: str, label: float | None) -> Tensor:
        """One picture as the model reads it, [1, 3, height, width]."""
        data = picture.read()
        if self.fingerprint(data, label) != fingerprint:
            raise DataError(f"{picture.name}: the picture has changed since the store was planned; extract again")
        image = self.inputs.augment(decode(picture, data), hashlib.sha256(data).hexdigest(), view, self.inputs.seed)
        return self.inputs.pixels([image])


def _content_hash(data: bytes, label: float | None) -> str:
    document = {"picture": hashlib.sha256(data).hexdigest(), "label": None if label is None else float(label)}
    return hashlib.sha256(canonical(document)).hexdigest()[:HASH_DIGITS]


def _settings(processor: Any) -> dict[str, str | int]:
    """What an image processor does, flat, without its name or place."""
    known = {name: value for name, value in processor.to_dict().items() if name not in _NO_SETTINGS}
    return {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in sorted(known.items())
        if value is not None and not name.startswith("_")
    }
