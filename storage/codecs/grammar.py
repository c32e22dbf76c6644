"""The grammar of encodings: one string that says how values become stored bytes.

    <numbers>[+bitround:<bits>][+zstd[:<level>]]          bfloat16, float32+bitround:10+zstd:3, int8

numbers: float64, float32, float16 and bfloat16 hold a value each; int8 holds a row as quantised channels with a
scale of its own (int8.py). bitround (float32 and float16) rounds to so many bits of the mantissa, which makes
values compress. zstd compresses each chunk without loss. Rounding is to nearest, ties to even.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from ..errors import InvalidInput
from ..nearest import did_you_mean
from .zstd import compress_bound

_BFLOAT16_NAN: Final = 0x7FC0
_INT8_FILL: Final = -128
_MANTISSA_BITS: Final[Mapping[str, int]] = MappingProxyType({"float32": 23, "float16": 10})
_DEFAULT_LEVEL: Final = 1
_MOST_LEVEL: Final = 22
_FEATURES: Final = ("bitround", "int8", "zstd")


@dataclass(frozen=True)
class Encoding:
    """One way to store values: its canonical name, the numpy type on disk, and the fill of rows that nobody wrote.

    numbers: the number format, which is the array's `logical_dtype`. keepbits: bits of the mantissa that bitround
    keeps, None for all. level: of zstd, None for chunks that are stored as they are.
    """

    name: str
    numbers: str
    dtype: np.dtype[Any]
    fill: float | int
    keepbits: int | None = None
    level: int | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of one stored number."""
        return self.dtype.itemsize

    @property
    def compressed(self) -> bool:
        """Whether chunks differ in size on disk, so that a row cannot be read without its whole chunk."""
        return self.level is not None

    @property
    def calibrated(self) -> bool:
        """Whether values can be encoded and decoded only with the calibration of their tap."""
        return self.numbers == "int8"

    @property
    def features(self) -> tuple[str, ...]:
        """What a reader of a store must know to understand it, beside the four float formats."""
        needed = {"bitround": self.keepbits is not None, "int8": self.calibrated, "zstd": self.compressed}
        return tuple(name for name in _FEATURES if needed[name])

    def stored_bytes(self, raw_bytes: int) -> int:
        """Bytes that a chunk of `raw_bytes` takes at most, without its checksum; exactly so unless compressed."""
        return compress_bound(raw_bytes) if self.compressed else raw_bytes


ENCODINGS: Final[Mapping[str, Encoding]] = MappingProxyType(
    {
        "float64": Encoding("float64", "float64", np.dtype("<f8"), float("nan")),
        "float32": Encoding("float32", "float32", np.dtype("<f4"), float("nan")),
        "float16": Encoding("float16", "float16", np.dtype("<f2"), float("nan")),
        "bfloat16": Encoding("bfloat16", "bfloat16", np.dtype("<u2"), _BFLOAT16_NAN),
    }
)
"""The encodings that hold one value in one number; `encoding` knows these, int8, and both with bitround and zstd."""

_INT8: Final = Encoding("int8", "int8", np.dtype("i1"), _INT8_FILL)
NUMBERS: Final = (*ENCODINGS, _INT8.name)


@lru_cache(maxsize=64)
def encoding(name: str) -> Encoding:
    """The encoding of that name, with its name in canonical form. Raises InvalidInput for one that does not exist."""
    numbers, *parts = name.split("+")
    found = _INT8 if numbers == _INT8.name else ENCODINGS.get(numbers)
    if found is None:
        raise InvalidInput(
            f"encoding {name!r}: number format {numbers!r} does not exist{did_you_mean(numbers, NUMBERS)}: "
            f"one of {', '.join(NUMBERS)}"
        )
    options: dict[str, int] = {}
    for part in parts:
        word, separator, text = part.partition(":")
        if word not in ("bitround", "zstd"):
            raise InvalidInput(
                f"encoding {name!r}: {word!r} does not exist{did_you_mean(word, ('bitround', 'zstd'))}: "
                "bitround:<bits> and zstd:<level> can follow the number format"
            )
        if word in options:
            raise InvalidInput(f"encoding {name!r}: {word} is named twice, once is right")
        options[word] = _number(name, word, text if separator else None, numbers)
    keepbits, level = options.get("bitround"), options.get("zstd")
    canonical = numbers
    canonical += "" if keepbits is None else f"+bitround:{keepbits}"
    canonical += "" if level is None else f"+zstd:{level}"
    return Encoding(canonical, numbers, found.dtype, found.fill, keepbits, level)


def _number(name: str, word: str, text: str | None, numbers: str) -> int:
    if word == "zstd":
        most, example = _MOST_LEVEL, f"zstd:{_DEFAULT_LEVEL}"
        if text is None:
            return _DEFAULT_LEVEL
    else:
        if numbers not in _MANTISSA_BITS:
            raise InvalidInput(f"encoding {name!r}: bitround works on {' and '.join(_MANTISSA_BITS)}, not on {numbers}")
        most, example = _MANTISSA_BITS[numbers], "bitround:7"
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= 2 and 1 <= int(text) <= most):
        given = "no number" if text is None else repr(text)
        raise InvalidInput(f"encoding {name!r}: {word} has {given}: give 1 to {most}, as in {example}")
    return int(text)
