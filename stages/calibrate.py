"""A look at the states before the plan: what int8 is calibrated to, whether float16 holds them, how well they compress.

The first examples in written order run through the early layers once. They are a function of data and settings alone;
what the states say is not quite (another machine differs in the last bits), so a store that exists keeps its own
calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..storage import Calibration, Encoding, Misfit, calibrate, encode, encoding
from ..storage.calibration import find_calibrations
from ..storage.codecs import pack
from ..storage.documents import PLAN
from ..storage.errors import NonFinite
from .overlap import as_numpy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from ..storage import Ragged
    from .front import Front
    from .streaming_front import StreamingFront
    from .tokens import TokenBatch

SAMPLE_TOKENS = 4096
"""Rows of a stream that are looked at, at most."""
LEAST_SAMPLE_BYTES = 64 << 20
"""The sample may take as much memory as a unit, and never less than this."""


Widths = Mapping[str, Mapping[int, int]]
"""Of every tap of each stream."""


@dataclass(frozen=True)
class Survey:
    """calibrations: by stream, for int8. share: compressed bytes of the sample as a share of raw ones, for zstd."""

    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    share: float | None = None


def known_survey(
    store: Path | None, stored: Encoding, taps: Mapping[str, tuple[int, ...]], widths: Widths
) -> Survey | None:
    """What is known without running anything; None where states must be seen before the plan: for int8's calibration, for
    what float16 cannot hold, for what zstd makes of them. A store that was begun has been looked at.
    """
    if not (stored.calibrated or stored.compressed or stored.numbers == "float16"):
        return Survey()
    if store is None or not (store / PLAN).exists():
        return None
    found = calibrations_at(store, taps, widths) if stored.calibrated else {}
    return Survey(found) if found or not stored.calibrated else None


def calibrations_at(store: Path, taps: Mapping[str, tuple[int, ...]], widths: Widths) -> dict[str, Calibration]:
    """The calibrations of a store by stream, where they cover what is asked for; else none."""
    found = find_calibrations(store)
    covered = all(
        name in found and found[name].covers({tap: widths[name][tap] for tap in numbers})
        for name, numbers in taps.items()
    )
    return {name: found[name] for name in taps} if covered else {}


def sample_examples(
    lengths: Mapping[str, Ragged],
    order: NDArray[np.int64],
    taps: Mapping[str, tuple[int, ...]],
    widths: Widths,
    memory: int,
) -> int:
    """How many examples, from the first in written order, make the sample: one at least.

    lengths: by stream, in source order; memory: bytes that their states may take in float32.
    """
    first = order[:SAMPLE_TOKENS]
    rows = {name: ragged.take(first).totals() for name, ragged in lengths.items()}
    sizes = sum(rows[name] * (4 * sum(widths[name][tap] for tap in taps[name])) for name in rows)
    fits = np.cumsum(sizes) <= max(memory, LEAST_SAMPLE_BYTES)
    for counts in rows.values():
        fits &= np.cumsum(counts) <= SAMPLE_TOKENS
    return max(int(fits.sum()), 1)


def survey(front: Front | StreamingFront, batches: Iterable[TokenBatch], stored: Encoding, chunk_bytes: int) -> Survey:
    """Run the early layers over some batches and see what the encoding makes of their states.

    Raises NonFinite, naming the tap, where they do not fit: before hours of work, not after.
    """
    parts: dict[tuple[str, int], list[NDArray[Any]]] = {}
    for batch in batches:
        for name, packed in front(batch).items():
            for tap, values in zip(packed.depths, packed.taps, strict=True):
                parts.setdefault((name, tap), []).append(as_numpy(values))
    samples = {key: np.concatenate(parts.pop(key)) for key in list(parts)}
    calibrations: dict[str, Calibration] = {}
    if stored.calibrated:
        for (name, tap), values in samples.items():
            _refuse(name, tap, encode(values, encoding("float32"))[1], stored, len(values))
        for name in front.taps:
            calibrations[name] = calibrate({tap: rows for (stream, tap), rows in samples.items() if stream == name})
    raw = compressed = 0
    for (name, tap), values in samples.items():
        channels = calibrations[name].tap(tap) if stored.calibrated else None
        numbers, misfit = encode(values, stored, channels)
        _refuse(name, tap, misfit, stored, len(values))
        if stored.compressed:
            height = max(chunk_bytes // numbers[:1].nbytes, 1)
            for start in range(0, len(numbers), height):
                chunk = numbers[start : start + height]
                raw += chunk.nbytes
                compressed += pack(chunk, stored).nbytes
    return Survey(calibrations, compressed / raw if raw else None)


def _refuse(stream: str, tap: int, misfit: Misfit, stored: Encoding, count: int) -> None:
    if misfit.rows:
        raise NonFinite(
            f"{stream}/h{tap:02d}: {misfit.told()} values of the first {count:,} rows do not fit {stored.name}: "
            f"{misfit.advice()}"
        )
