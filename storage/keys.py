"""Canonical JSON and sha256: how everything in a store is named and compared.

Two documents are equal exactly when their canonical bytes are: keys sorted, no spaces, UTF-8, no NaN.
"""

import hashlib
import json
import os
from typing import Any, Final

SHOWN_DIGITS: Final = 12
_READ_BYTES: Final = 1 << 20


def canonical(value: Any) -> bytes:
    """Canonical JSON bytes of a tree of dicts, lists, strings, numbers, booleans and None.

    Raises ValueError for NaN and infinity, which JSON cannot hold.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def digest(value: Any) -> str:
    """sha256, in hexadecimal, of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value)).hexdigest()


def digest_bytes(data: bytes) -> str:
    """sha256, in hexadecimal, of `data`."""
    return hashlib.sha256(data).hexdigest()


def digest_descriptor(descriptor: int) -> tuple[int, str]:
    """Bytes and sha256 of what an open file holds, read from its start."""
    hasher = hashlib.sha256()
    position = 0
    while block := os.pread(descriptor, _READ_BYTES, position):
        hasher.update(block)
        position += len(block)
    return position, hasher.hexdigest()


def shown(value: object) -> str:
    """A value as messages show it: a sha256 shortened, the rest as JSON."""
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return value[:SHOWN_DIGITS] + ".."
    return json.dumps(value, ensure_ascii=False, default=str)
