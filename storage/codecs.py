"""Encodings: how the floats of a tap become stored numbers, and what does not fit.

float64, float32 and float16 are stored as such, bfloat16 as its 16 bits in uint16 (zarr has no such type; the
array's attribute `logical_dtype` says so). Rounding is to nearest, ties to even. The fill of unwritten rows
is NaN.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInput


@dataclass(frozen=True)
class Encoding:
    """One way to store values: its name, the numpy type on disk, and the fill of rows that nobody wrote."""

    name: str
    dtype: np.dtype[Any]
    fill: float | int

    @property
    def itemsize(self) -> int:
        """Bytes of one stored value."""
        return self.dtype.itemsize


class Misfit(NamedTuple):
    """How many values of an array an encoding cannot hold, and the first few rows they lie in."""

    nan: int
    inf: int
    overflow: int
    rows: tuple[int, ...]


FITS: Final = Misfit(0, 0, 0, ())
_BFLOAT16_NAN: Final = 0x7FC0
_BFLOAT16_EXPONENT: Final = np.uint16(0x7F80)
_SHOWN_ROWS: Final = 8

ENCODINGS: Final[Mapping[str, Encoding]] = MappingProxyType(
    {
        "float64": Encoding("float64", np.dtype("<f8"), float("nan")),
        "float32": Encoding("float32", np.dtype("<f4"), float("nan")),
        "float16": Encoding("float16", np.dtype("<f2"), float("nan")),
        "bfloat16": Encoding("bfloat16", np.dtype("<u2"), _BFLOAT16_NAN),
    }
)


def encoding(name: str) -> Encoding:
    """The encoding of that name. Raises InvalidInput for one that does not exist."""
    found = ENCODINGS.get(name)
    if found is None:
        raise InvalidInput(f"encoding {name!r} does not exist: one of {', '.join(ENCODINGS)}")
    return found


def encode(values: NDArray[Any], target: Encoding) -> tuple[NDArray[Any], Misfit]:
    """Values [n, width] of any float type as stored numbers, and what did not fit.

    bfloat16 is rounded from float32, so a float64 input is rounded twice. Where values misfit, the result
    holds NaN or infinity at their places; callers refuse it.
    """
    if values.dtype.kind != "f":
        raise InvalidInput(f"values to store have type {values.dtype}: a float type is needed")
    with np.errstate(over="ignore", invalid="ignore"):
        stored = _to_bfloat16(values) if target.name == "bfloat16" else values.astype(target.dtype)
    finite = _finite(stored, target)
    return stored, (FITS if finite.all() else _misfit(values, finite))


def decode(stored: NDArray[Any], source: Encoding) -> NDArray[Any]:
    """Stored numbers as float32 (float64 where they are float64), exactly."""
    if source.name == "bfloat16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float64 if source.name == "float64" else np.float32)


def _to_bfloat16(values: NDArray[Any]) -> NDArray[np.uint16]:
    single = np.ascontiguousarray(values, dtype=np.float32)
    bits = single.view(np.uint32)
    # Adding half of the last kept digit, and one more when that digit is odd, rounds to nearest with ties to
    # even.
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    stored = rounded.astype("<u2")
    # The sum may carry a NaN over into another number.
    nan = np.isnan(single)
    if nan.any():
        stored[nan] = _BFLOAT16_NAN
    return stored


def _finite(stored: NDArray[Any], target: Encoding) -> NDArray[np.bool_]:
    if target.name != "bfloat16":
        return np.asarray(np.isfinite(stored), dtype=np.bool_)
    return np.asarray((stored & _BFLOAT16_EXPONENT) != _BFLOAT16_EXPONENT, dtype=np.bool_)


def _misfit(values: NDArray[Any], finite: NDArray[np.bool_]) -> Misfit:
    nan = int(np.isnan(values).sum())
    inf = int(np.isinf(values).sum())
    rows = np.flatnonzero(~finite.all(axis=1))
    return Misfit(nan, inf, int((~finite).sum()) - nan - inf, tuple(rows[:_SHOWN_ROWS].tolist()))
