"""int8 rows: channels brought to a like spread, quantised with a scale of the row's own, a few kept at 16 bits.

    row = q of the ordinary channels, ascending (int8, -127 to 127)
        | the row's scale (float16, little-endian)
        | the outlier channels, ascending (float16, little-endian)

    normalised[c] = q[c] * scale                    for an ordinary channel, the outlier's float16 else
    value[c] = normalised[c] * channel_scale[c] + channel_shift[c]              in float32, in this order

One scale for a whole array fails on transformers: a few channels are a hundred times larger than the rest, and take
all of the 255 steps. Here every channel is measured in its own spread first, so a step costs each channel the same
share of it. Channels that still set the scale of many rows are the outliers; since they are normalised too, float16
holds them whatever the model's range is. A row of nothing but -128 was never written and decodes to NaN.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LEVELS: Final = 127
SCALE_BYTES: Final = 2
OUTLIER_BYTES: Final = 2
MOST_BYTES: Final = 0.51
"""Bytes of a row, as a share of its float16 bytes, that outlier channels may bring it to."""
UNWRITTEN_SCALE: Final = np.uint16(0x8080)
"""The bits of the scale in a row of -128; a scale that was written is never negative."""
FORMULA: Final = (
    "A row is: the ordinary channels in ascending order as int8 (q); one float16, little-endian (scale); the outlier "
    "channels in ascending order as float16, little-endian (o). value[c] = q * scale * channel_scale[c] + "
    "channel_shift[c] for an ordinary channel c, o * channel_scale[c] + channel_shift[c] for an outlier, in float32 "
    "from left to right. A row whose bytes are all -128 was never written."
)
_LARGEST: Final = 65504.0
_LEAST_NORMAL: Final = 2.0**-14
_BLOCK_VALUES: Final = 1 << 17


def most_outliers(width: int, most_bytes: float = MOST_BYTES) -> int:
    """Outlier channels of a row of `width` channels that keep it within this share of its float16 bytes."""
    most = max(math.floor((most_bytes * 2 - 1) * width) - SCALE_BYTES, 0) // (OUTLIER_BYTES - 1)
    return min(most, width - 1)


def tap_outliers(outliers: int, width: int, widest: int) -> int:
    """Outlier channels of a tap of `width` channels in a stream whose widest tap has so many."""
    return outliers if width == widest else min(outliers, most_outliers(width))


def stored_width(width: int, outliers: int) -> int:
    """Bytes of a row of `width` channels, `outliers` of them at 16 bits."""
    return width - outliers + SCALE_BYTES + OUTLIER_BYTES * outliers


@dataclass(frozen=True, eq=False)
class ChannelCalibration:
    """What the values of one tap are measured in: shift and scale of each channel, float32 [width], scales above 0;
    and the outlier channels, int64 [k], ascending.
    """

    shift: NDArray[np.float32]
    scale: NDArray[np.float32]
    outliers: NDArray[np.int64]

    @property
    def width(self) -> int:
        """Channels of a value row."""
        return len(self.shift)

    @property
    def stored_width(self) -> int:
        """Bytes of a stored row."""
        return stored_width(self.width, len(self.outliers))

    @cached_property
    def ordinary(self) -> NDArray[np.int64]:
        """The quantised channels, ascending: [width - k]."""
        return np.delete(np.arange(self.width), self.outliers)

    def runs(self) -> Iterator[tuple[slice, slice]]:
        """Where ordinary channels lie: runs of them in a stored row, and the same in a row of values."""
        for passed, (before, after) in enumerate(pairwise([-1, *self.outliers.tolist(), self.width])):
            if after > before + 1:
                yield slice(before + 1 - passed, after - passed), slice(before + 1, after)


def quantise(values: NDArray[Any], tap: ChannelCalibration) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Values [n, width] as stored rows [n, stored width], and which of them fit: [n, width].

    A value fits when it is finite and float16 can hold it in its channel's measure.
    """
    stored = np.empty((len(values), tap.stored_width), np.int8)
    fits = np.ones(values.shape, np.bool_)
    height = max(_BLOCK_VALUES // tap.width, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(values), height):
            block = slice(start, start + height)
            _quantise_block(values[block], tap, stored[block], fits[block])
    return stored, fits


def _quantise_block(
    values: NDArray[Any], tap: ChannelCalibration, stored: NDArray[np.int8], fits: NDArray[np.bool_]
) -> None:
    """Quantise some rows, few enough to stay in the processor's cache, into `stored`; mark in `fits` what does not."""
    normalised = values.astype(np.float32)
    normalised -= tap.shift
    normalised /= tap.scale
    outliers = np.ascontiguousarray(normalised[:, tap.outliers])
    normalised[:, tap.outliers] = 0
    largest = np.abs(np.maximum(normalised.max(axis=1, keepdims=True), -normalised.min(axis=1, keepdims=True)))
    if not (largest.max() <= LEVELS * _LARGEST and np.abs(outliers).max(initial=0) <= _LARGEST):  # NaN is not
        np.less_equal(np.abs(normalised), LEVELS * _LARGEST, out=fits)
        fits[:, tap.outliers] = np.abs(outliers) <= _LARGEST
    scale = (largest / np.float32(LEVELS)).astype("<f2")
    normalised /= np.where(scale > 0, scale, np.inf).astype(np.float32)
    np.rint(normalised, out=normalised)
    if not scale.min() >= _LEAST_NORMAL:  # below, a scale may be rounded far down
        np.nan_to_num(normalised, copy=False)
        np.clip(normalised, -LEVELS, LEVELS, out=normalised)
    for target, source in tap.runs():
        stored[:, target] = normalised[:, source]
    count = len(tap.ordinary)
    stored[:, count : count + SCALE_BYTES] = scale.view(np.int8)
    stored[:, count + SCALE_BYTES :] = outliers.astype("<f2").view(np.int8).reshape(len(values), -1)


def dequantise(stored: NDArray[Any], tap: ChannelCalibration) -> NDArray[np.float32]:
    """Stored rows [n, stored width] as float32 [n, width]; rows that were never written as NaN."""
    count = len(tap.ordinary)
    tail = np.ascontiguousarray(stored[:, count:]).view("<f2")  # [n, 1 + k]
    written = tail[:, :1].view(np.uint16) != UNWRITTEN_SCALE
    tail = np.where(written, tail, np.float16(np.nan)).astype(np.float32)
    values = np.empty((len(stored), tap.width), np.float32)
    for source, target in tap.runs():
        values[:, target] = stored[:, source]
    with np.errstate(over="ignore", invalid="ignore"):
        values *= tail[:, :1]
        values[:, tap.outliers] = tail[:, 1:]
        values *= tap.scale
        values += tap.shift
    return values
