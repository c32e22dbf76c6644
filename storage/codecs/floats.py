"""Values as floats of 64, 32 or 16 bits, optionally with fewer bits of mantissa.

float64, float32 and float16 are stored as such, bfloat16 as its 16 bits in uint16 (zarr has no such type; the
array's attribute `logical_dtype` says so). Rounding is to nearest, ties to even. The fill of unwritten rows
is NaN.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .grammar import Encoding

_BFLOAT16_NAN: Final = 0x7FC0
_BFLOAT16_EXPONENT: Final = np.uint16(0x7F80)


def encode_floats(values: NDArray[Any], target: Encoding) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values [n, width] as stored numbers [n, width], and which of them fit: [n, width].

    What does not fit is stored as NaN or infinity.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        stored = _to_bfloat16(values) if target.numbers == "bfloat16" else values.astype(target.dtype)
    fits = _finite(stored, target)
    if target.keepbits is not None:
        stored = _bitround(stored, target.keepbits)
        fits &= _finite(stored, target)
    return stored, fits


def decode_floats(stored: NDArray[Any], source: Encoding) -> NDArray[Any]:
    """Stored numbers as float32 (float64 where they are float64), exactly."""
    if source.numbers == "bfloat16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float64 if source.numbers == "float64" else np.float32)


def _bitround(stored: NDArray[Any], keepbits: int) -> NDArray[Any]:
    from numcodecs.bitround import BitRound  # here, since numcodecs loads every codec that it has

    # Rounding is done on the bits, and may carry those of a NaN or an infinity over into a number.
    rounded: NDArray[Any] = np.asarray(BitRound(keepbits).encode(stored)).view(stored.dtype)
    return np.where(np.isfinite(stored), rounded, stored)


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
    if target.numbers != "bfloat16":
        return np.asarray(np.isfinite(stored), dtype=np.bool_)
    return np.asarray((stored & _BFLOAT16_EXPONENT) != _BFLOAT16_EXPONENT, dtype=np.bool_)
