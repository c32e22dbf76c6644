"""What each encoding makes of some states: how large they get, and what encoding and decoding take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from ...stages.decode import TapDecoder
from ...storage import calibrate, encode, encoding
from ...storage.codecs import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from ...storage import ChannelCalibration, Encoding

MOST_VALUES: Final = 1 << 21
_REPEATS: Final = 3

States = dict[tuple[str, int], "NDArray[np.float32]"]
"""Rows [n, width] of taps, by stream and number."""


@dataclass(frozen=True)
class Codec:
    """One encoding, per value of a state; seconds are of one thread but for decoding, which is torch's."""

    name: str
    fits: bool
    """Whether it held every value that was looked at."""
    bytes: float
    """Stored, compressed where it compresses."""
    encode_seconds: float
    decode_seconds: float
    unpack_seconds: float
    """To decompress, by whoever reads."""


def measure_codec(name: str, states: States, device: torch.device) -> Codec:
    """One encoding on some states of every tap, the least seconds of a few repeats."""
    stored = encoding(name)
    streams = sorted({stream for stream, _ in states})
    values = sum(rows.size for rows in states.values())
    channels: dict[tuple[str, int], ChannelCalibration | None] = dict.fromkeys(states)
    if stored.calibrated:
        for stream in streams:
            found = calibrate({tap: rows for (own, tap), rows in states.items() if own == stream})
            channels |= {key: found.tap(key[1]) for key in states if key[0] == stream}
    encode_seconds, made = _least(lambda: {key: encode(rows, stored, channels[key]) for key, rows in states.items()})
    numbers = {key: found for key, (found, _) in made.items()}
    pack_seconds, packed = _least(lambda: {key: pack(found, stored) for key, found in numbers.items()})
    unpack_seconds = 0.0
    if stored.compressed:
        out = {key: np.empty(found.nbytes, np.uint8) for key, found in numbers.items()}
        unpack_seconds, _ = _least(lambda: [unpack(packed[key], out[key]) for key in packed])
    decoders = {
        stream: _decoder(stored, [c for (own, _), c in channels.items() if own == stream], device) for stream in streams
    }
    rows = {stream: _together([found for (own, _), found in numbers.items() if own == stream]) for stream in streams}

    def decode() -> None:
        for stream in streams:
            decoders[stream](rows[stream])
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    decode_seconds, _ = _least(decode)
    return Codec(
        name=stored.name,
        fits=not any(misfit.rows for _, misfit in made.values()),
        bytes=sum(found.nbytes for found in packed.values()) / values,
        encode_seconds=(encode_seconds + (pack_seconds if stored.compressed else 0.0)) / values,
        decode_seconds=decode_seconds / values,
        unpack_seconds=unpack_seconds / values,
    )


def some_states(taps: Mapping[tuple[str, int], NDArray[Any]]) -> States:
    """The first rows of every tap, `MOST_VALUES` values together at most."""
    width = sum(rows.shape[1] for rows in taps.values())
    count = max(MOST_VALUES // width, 1)
    return {key: np.ascontiguousarray(rows[:count], np.float32) for key, rows in taps.items()}


def _decoder(stored: Encoding, channels: Sequence[ChannelCalibration | None], device: torch.device) -> TapDecoder:
    return TapDecoder(stored, tuple(found for found in channels if found is not None), device)


def _together(taps: Sequence[NDArray[Any]]) -> Any:
    """Taps as a batch holds them: one array where they are equally wide."""
    return np.stack(taps) if len({tap.shape for tap in taps}) == 1 else tuple(taps)


def _least(call: Any) -> tuple[float, Any]:
    """The least seconds of a few calls, and what the last one gave."""
    least, found = float("inf"), None
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        found = call()
        least = min(least, time.perf_counter() - begun)
    return least, found
