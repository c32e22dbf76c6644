"""`builtin/digits`: the 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn, real ones.

`builtin/digits:5-9` is some of the classes, so that a model can be trained on others first.

They are part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), which has seventeen
levels of grey.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from ...storage.errors import DataError
from .contract import BUILTIN, Picture, PictureSource

VALIDATION_ROWS: Final = 359
LABELS: Final = tuple("0123456789")
_CLASSES: Final = re.compile(r"([0-9])-([0-9])")


class Digits(PictureSource):
    """1,438 training and 359 validation digits, or those of some classes; which is which is drawn once for all."""

    splits = ("train", "validation")

    def __init__(self, name: str) -> None:
        """name: ends in a colon and two digits with a dash between where only those and what lies between are wanted.

        Raises DataError.
        """
        self.name = name
        _, colon, classes = name.partition(":")
        found = _CLASSES.fullmatch(classes) if colon else None
        first, last = (int(found[1]), int(found[2])) if found else (0, 9)
        if (colon and not found) or first >= last:
            raise DataError(
                f"{name}: give two digits with a dash between, the smaller first, as in {BUILTIN}digits:5-9"
            )
        self._labels = LABELS[first : last + 1]
        self._rows = _rows(first, last)

    def columns(self, split: str) -> tuple[str, ...]:
        return ("image", "label")

    def rows(self, split: str) -> int:
        self.require(split)
        return len(self._rows[split])

    def class_names(self, split: str, column: str) -> tuple[str, ...] | None:
        return self._labels if column == "label" else None

    def take(self, split: str, column: str, rows: Sequence[int]) -> list[Any]:
        self.require(split, [column])
        pixels, labels = _digits()
        chosen = [self._rows[split][row] for row in rows]
        if column == "label":
            return [str(labels[number]) for number in chosen]
        return [Picture(f"{self.name}: digit {number}", _grey_map(pixels[number])) for number in chosen]


@cache
def _digits() -> tuple[Any, Any]:
    """Levels of grey from 0 to 16, [1797, 8, 8], and the digits that they show."""
    from sklearn.datasets import load_digits  # heavy, and no other source needs it

    found = load_digits()
    return found.images, found.target


@cache
def _rows(first: int, last: int) -> dict[str, list[int]]:
    """Digits of each split that show `first` to `last`, in the order of their rows: by the digest of their number, so
    that all classes mix."""
    labels = _digits()[1]
    drawn = sorted(range(len(labels)), key=lambda number: hashlib.sha256(str(number).encode()).digest())
    splits = {"train": drawn[:-VALIDATION_ROWS], "validation": drawn[-VALIDATION_ROWS:]}
    return {split: [row for row in rows if first <= labels[row] <= last] for split, rows in splits.items()}


def _grey_map(levels: Any) -> bytes:
    """A portable grey map, a format without compression, so that every machine has the same bytes."""
    height, width = levels.shape
    return f"P5 {width} {height} 255\n".encode() + bytes((levels * 255 / 16).round().astype("uint8").tobytes())
