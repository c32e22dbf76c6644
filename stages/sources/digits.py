"""`builtin/digits`: the 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn, real ones.

They are part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), which has seventeen
levels of grey.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

from .contract import PICTURE_BATCH_ROWS, Batch, Picture, Source

VALIDATION_ROWS: Final = 359
LABELS: Final = tuple("0123456789")


class Digits(Source):
    """1,438 training and 359 validation digits; which is which is drawn once for all."""

    splits = ("train", "validation")

    def __init__(self, name: str) -> None:
        self.name = name

    def columns(self, split: str) -> tuple[str, ...]:
        return ("image", "label")

    def rows(self, split: str) -> int:
        self.require(split)
        return len(_rows()[split])

    def batches(self, split: str, columns: Sequence[str]) -> Iterator[Batch]:
        self.require(split, columns)
        for start in range(0, self.rows(split), PICTURE_BATCH_ROWS):
            rows = range(start, min(start + PICTURE_BATCH_ROWS, self.rows(split)))
            yield {column: self.take(split, column, rows) for column in columns}

    def class_names(self, split: str, column: str) -> tuple[str, ...] | None:
        return LABELS if column == "label" else None

    def picture_columns(self, split: str) -> tuple[str, ...]:
        return ("image",)

    def take(self, split: str, column: str, rows: Sequence[int]) -> list[Any]:
        self.require(split, [column])
        pixels, labels = _digits()
        chosen = [_rows()[split][row] for row in rows]
        if column == "label":
            return [int(labels[number]) for number in chosen]
        return [Picture(f"{self.name}: digit {number}", _grey_map(pixels[number])) for number in chosen]


@cache
def _digits() -> tuple[Any, Any]:
    """Levels of grey from 0 to 16, [1797, 8, 8], and the digits that they show."""
    from sklearn.datasets import load_digits  # heavy, and no other source needs it

    found = load_digits()
    return found.images, found.target


@cache
def _rows() -> dict[str, list[int]]:
    """Digits of each split, in the order of their rows: by the digest of their number, so that all classes mix."""
    count = len(_digits()[1])
    drawn = sorted(range(count), key=lambda number: hashlib.sha256(str(number).encode()).digest())
    return {"train": drawn[:-VALIDATION_ROWS], "validation": drawn[-VALIDATION_ROWS:]}


def _grey_map(levels: Any) -> bytes:
    """A portable grey map, a format without compression, so that every machine has the same bytes."""
    height, width = levels.shape
    return f"P5 {width} {height} 255\n".encode() + bytes((levels * 255 / 16).round().astype("uint8").tobytes())
