"""Zstandard chunks: one frame that says its own size, decoded into exactly the bytes that the plan declares.

A frame is looked through before anything is decoded: whoever wrote it, decoding it writes at most the declared bytes
and takes no memory beside them.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SMALL: Final = 128 << 10
_CHECKSUM_BYTES: Final = 4
_RLE, _RESERVED = 1, 3


def compress_bound(raw_bytes: int) -> int:
    """Bytes of a frame that holds `raw_bytes`, at most: the bound that the zstd library promises."""
    return raw_bytes + (raw_bytes >> 8) + (max(_SMALL - raw_bytes, 0) >> 11)


def compress(chunk: NDArray[Any], level: int) -> NDArray[np.uint8]:
    """The bytes of a contiguous chunk as one frame that holds their number and no checksum."""
    from numcodecs.zstd import Zstd  # here, since numcodecs loads every codec that it has

    return np.frombuffer(Zstd(level, checksum=False).encode(chunk.reshape(-1).view(np.uint8)), np.uint8)


def decompress(frame: NDArray[np.uint8], out: NDArray[np.uint8]) -> str | None:
    """Decode a frame into all of `out`; in words what is wrong with it, None where nothing is."""
    if (problem := frame_problem(frame.data, out.nbytes)) is not None:
        return problem
    from numcodecs.zstd import Zstd

    try:
        Zstd().decode(frame, out)
    except (RuntimeError, ValueError) as error:
        return f"its zstd frame is damaged ({error})"
    return None


def frame_problem(frame: memoryview, raw_bytes: int) -> str | None:
    """Why `frame` is not one whole frame that declares `raw_bytes` of content; None where it is.

    Only headers are looked at: that of the frame and those of its blocks (RFC 8878, section 3.1.1).
    """
    if bytes(frame[:4]) != _MAGIC or len(frame) < 6:
        return "it is no zstd frame"
    descriptor = frame[4]
    single, checksum, dictionary = bool(descriptor & 0x20), bool(descriptor & 0x04), descriptor & 0x03
    if descriptor & 0x08 or dictionary:
        return "its zstd frame needs a dictionary or a newer decoder"
    place = 5 if single else 6
    size_bytes = (int(single), 2, 4, 8)[descriptor >> 6]
    declared = int.from_bytes(frame[place : place + size_bytes], "little") + (256 if size_bytes == 2 else 0)
    if not size_bytes or declared != raw_bytes:
        said = f"{declared:,} bytes" if size_bytes else "no size"
        return f"its zstd frame declares {said} of content, {raw_bytes:,} are right"
    place += size_bytes
    last = False
    while not last:
        if place + 3 > len(frame):
            return "its zstd frame is cut"
        block = int.from_bytes(frame[place : place + 3], "little")
        last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
        if kind == _RESERVED:
            return "its zstd frame has a block of no known kind"
        place += 3 + (1 if kind == _RLE else size)
    place += _CHECKSUM_BYTES if checksum else 0
    return None if place == len(frame) else "its zstd frame is cut, or something follows it"
