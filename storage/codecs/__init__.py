"""Encodings: how the floats of a tap become stored bytes, and what does not fit.

`encode` and `decode` go between values and stored numbers; `pack` and `unpack` between the stored numbers of a chunk
and its bytes in a shard. numcodecs does the compressing, as zarr has it do.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from .floats import decode_floats, encode_floats
from .grammar import ENCODINGS, NUMBERS, Encoding, encoding
from .int8 import ChannelCalibration, dequantise, quantise
from .zstd import compress, decompress

__all__ = [
    "ENCODINGS",
    "FITS",
    "NUMBERS",
    "ChannelCalibration",
    "Encoding",
    "Misfit",
    "decode",
    "encode",
    "encoding",
    "pack",
    "unpack",
]

_SHOWN_ROWS: Final = 8


class Misfit(NamedTuple):
    """How many values of an array an encoding cannot hold, and the first few rows they lie in."""

    nan: int
    inf: int
    overflow: int
    rows: tuple[int, ...]

    def told(self) -> str:
        """In words: `2 NaN, 1 too large`."""
        counts = {"NaN": self.nan, "infinite": self.inf, "too large": self.overflow}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)

    def advice(self) -> str:
        """What to do about it."""
        if self.overflow and not self.nan and not self.inf:
            return "choose --encoding bfloat16, which holds the range of float32"
        return "the model's own states are not finite there"


FITS: Final = Misfit(0, 0, 0, ())


def encode(
    values: NDArray[Any], target: Encoding, calibration: ChannelCalibration | None = None
) -> tuple[NDArray[Any], Misfit]:
    """Values [n, width] of any float type as stored numbers, and what did not fit.

    bfloat16 and int8 are made from float32, so a float64 input is rounded twice. int8 needs the tap's `calibration`
    and has a width of its own. Where values misfit, callers refuse the result. Raises InvalidInput for values of another
    type or width.
    """
    if values.dtype.kind != "f":
        raise InvalidInput(f"values to store have type {values.dtype}: a float type is needed")
    if target.calibrated:
        calibration = _required(target, calibration)
        if values.shape[1:] != (calibration.width,):
            raise InvalidInput(f"values have shape {values.shape}, the calibration is of {calibration.width} channels")
        stored, fits = quantise(values, calibration)
    else:
        stored, fits = encode_floats(values, target)
    return stored, (FITS if fits.all() else _misfit(values, fits))


def decode(stored: NDArray[Any], source: Encoding, calibration: ChannelCalibration | None = None) -> NDArray[Any]:
    """Stored numbers [n, stored width] as float32 [n, width] (float64 where they are float64).

    Exact for floats; int8 by the formula in int8.py, and with the tap's `calibration`. Raises InvalidInput where that is
    lacking or of another width.
    """
    if not source.calibrated:
        return decode_floats(stored, source)
    calibration = _required(source, calibration)
    if stored.shape[1:] != (calibration.stored_width,):
        raise InvalidInput(f"rows have shape {stored.shape}, the calibration is of {calibration.stored_width} bytes")
    return dequantise(stored, calibration)


def pack(chunk: NDArray[Any], target: Encoding) -> NDArray[np.uint8]:
    """The bytes [n] of a contiguous chunk of stored numbers as a shard holds them, without checksum."""
    if target.level is None:
        return chunk.reshape(-1).view(np.uint8)
    return compress(chunk, target.level)


def unpack(packed: NDArray[np.uint8], out: NDArray[np.uint8]) -> str | None:
    """Decompress a chunk into all of `out`; in words what is wrong with it, None where nothing is."""
    return decompress(packed, out)


def _required(target: Encoding, calibration: ChannelCalibration | None) -> ChannelCalibration:
    if calibration is None:
        raise InvalidInput(f"encoding {target.name} needs the calibration of the tap: Store.calibration has it")
    return calibration


def _misfit(values: NDArray[Any], fits: NDArray[np.bool_]) -> Misfit:
    nan = int(np.isnan(values).sum())
    inf = int(np.isinf(values).sum())
    rows = np.flatnonzero(~fits.all(axis=1))
    return Misfit(nan, inf, int((~fits).sum()) - nan - inf, tuple(rows[:_SHOWN_ROWS].tolist()))
