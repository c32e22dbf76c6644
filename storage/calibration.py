"""The calibration of an int8 stream: what the channels of each tap are measured in, fitted once to a sample.

    sherl/calibration/<stream>-<digest>.json        named by the plan, published before it, never changed

A plan names the file, and its digest is part of what the store is made from; whoever goes on with a store takes the
calibration from there, since another machine would fit one that differs in its last digits. Numbers have six digits,
and their nearest float32 is meant.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from . import keys, ledger
from .codecs import ChannelCalibration
from .codecs.int8 import LEVELS, MOST_BYTES, most_outliers, tap_outliers
from .documents import DOCUMENT_BYTES, CalibrationRecord, Count, Document, Plan, Positive, parse
from .errors import InvalidInput, NonFinite, StoreCorrupt
from .readers.contract import Files
from .readers.local import LocalFiles

TARGET_ERROR: Final = 0.01
"""Root mean square error of a quantised channel, in units of the channel's own spread, that calibration aims at."""
_DIGITS: Final = 6
_LEAST_OF_DEVIATION: Final = 1 / 16
_LEAST_OF_MEDIAN: Final = 1 / 64


class TapCalibration(Document):
    """Shift and scale of each channel of a tap, its outlier channels, and the error on the sample."""

    tap: Count
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    outliers: tuple[Count, ...]
    error: Annotated[float, Field(ge=0)]

    def channels(self) -> ChannelCalibration:
        """The same as arrays."""
        shift, scale = np.asarray(self.shift, np.float32), np.asarray(self.scale, np.float32)
        return ChannelCalibration(shift, scale, np.asarray(self.outliers, np.int64))


class Calibration(Document):
    """The calibration of one stream: `rows` of it were looked at, every tap has the same number of outlier channels, but for
    those that are too narrow for so many (`tap_outliers`).

    width: of the widest tap. target: the error that was aimed at; a tap whose `error` is above it has as many outliers as
    bytes allow.
    """

    format: Literal[1] = 1
    width: Positive
    outliers: Count
    rows: Count
    target: float
    taps: Annotated[tuple[TapCalibration, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if [tap.tap for tap in self.taps] != sorted({tap.tap for tap in self.taps}):
            raise ValueError("taps must ascend and not repeat")
        for tap in self.taps:
            width = len(tap.shift)
            count = tap_outliers(self.outliers, width, self.width)
            if not 0 < width <= self.width or len(tap.scale) != width or len(tap.outliers) != count:
                raise ValueError(f"tap {tap.tap}: shift and scale need {self.width} numbers, outliers {self.outliers}")
            if list(tap.outliers) != sorted(set(tap.outliers)) or max(tap.outliers, default=0) >= width:
                raise ValueError(f"tap {tap.tap}: outliers must ascend and be channels")
            with np.errstate(over="ignore"):
                channels = tap.channels()
            if not (
                np.isfinite(channels.shift).all() and np.isfinite(channels.scale).all() and channels.scale.min() > 0
            ):
                raise ValueError(f"tap {tap.tap}: shifts must be finite in float32, scales above 0 too")
        if max(len(tap.shift) for tap in self.taps) != self.width:
            raise ValueError(f"the widest tap must have {self.width} channels")
        return self

    def tap(self, number: int) -> ChannelCalibration:
        """What tap `number` is encoded and decoded with. Raises InvalidInput for one that was not calibrated."""
        for tap in self.taps:
            if tap.tap == number:
                return tap.channels()
        raise InvalidInput(
            f"tap h{number:02d} was not calibrated, only {', '.join(f'h{t.tap:02d}' for t in self.taps)}"
        )

    def covers(self, widths: Mapping[int, int]) -> bool:
        """Whether it is of taps of these widths."""
        known = {tap.tap: len(tap.shift) for tap in self.taps}
        return all(known.get(tap) == width for tap, width in widths.items())

    def record(self, stream: str) -> CalibrationRecord:
        """How a plan names it; the file's bytes are `to_bytes()`."""
        name = f"calibration/{stream}-{self.file_sha256[: keys.SHOWN_DIGITS]}.json"
        return CalibrationRecord(file=name, outliers=self.outliers)


def calibrate(
    samples: Mapping[int, NDArray[Any]], *, target: float = TARGET_ERROR, most_bytes: float = MOST_BYTES
) -> Calibration:
    """Fit a calibration to sample rows [n, width of the tap] of each tap.

    Shift is the median of a channel, scale half of what lies between its 16th and 84th percentile: for normal values
    the standard deviation, and not moved by rare huge ones. The number of outlier channels is the smallest that
    brings the error of every tap to `target`, within `most_bytes` of a float16 row; which ones, each tap
    chooses. A sample without rows says nothing, and values are taken as they are. Raises NonFinite for a sample that
    holds NaN or infinity.
    """
    width = max(rows.shape[1] for rows in samples.values())
    fitted = {tap: _fit(tap, rows, most_outliers(rows.shape[1], most_bytes)) for tap, rows in sorted(samples.items())}
    counts = [
        next((k for k, error in enumerate(errors) if error <= target), len(errors) - 1)
        for *_, errors in fitted.values()
    ]
    count = max(counts)
    of_tap = {tap: tap_outliers(count, rows.shape[1], width) for tap, rows in samples.items()}
    return Calibration(
        width=width,
        outliers=count,
        rows=len(next(iter(samples.values()))),
        target=target,
        taps=tuple(
            TapCalibration(
                tap=tap,
                shift=tuple(map(_rounded, shift.tolist())),
                scale=tuple(map(_rounded, scale.tolist())),
                outliers=tuple(sorted(chosen[: of_tap[tap]])),
                error=_rounded(errors[of_tap[tap]]),
            )
            for tap, (shift, scale, chosen, errors) in fitted.items()
        ),
    )


def stored_calibrations(files: Files, plan: Plan) -> dict[str, Calibration]:
    """The calibrations that a plan names, by file, digests checked; none where nothing is calibrated.

    Raises StoreCorrupt where a file is missing or another one.
    """
    return {record.file: _read(files, plan, record) for _, record in calibration_records(plan)}


def find_calibrations(root: Path) -> dict[str, Calibration]:
    """By stream, the calibrations of the store at `root`; none where no store is there, or where they cannot be read."""
    files = LocalFiles(root)
    plans, _ = ledger.sound_plans(files)
    if not plans:
        return {}
    try:
        return {stream: _read(files, plans[-1], record) for stream, record in calibration_records(plans[-1])}
    except StoreCorrupt:
        return {}


def planned_calibrations(plan: Plan, read: Callable[[str], bytes | None]) -> dict[str, Calibration]:
    """The same for a plan that is not stored yet; `read` gives the bytes of a blob, or None.

    Raises InvalidInput where a file is lacking or is not what the plan says.
    """
    found = {}
    for stream, record in calibration_records(plan):
        data = read(record.file)
        calibration = None if data is None else parse(Calibration, data, record.file)
        if calibration is None or calibration.record(stream) != record:
            raise InvalidInput(f"{record.file}: the plan names this calibration; give its bytes among the files")
        found[record.file] = calibration
    _refuse_uncovered(plan, found)
    return found


def calibration_records(plan: Plan) -> Iterator[tuple[str, CalibrationRecord]]:
    """Stream and record of every calibration that a plan names, each once."""
    seen = set()
    for array in plan.arrays():
        record = array.stream_plan.calibration
        if record is not None and record.file not in seen:
            seen.add(record.file)
            yield array.stream, record


def _read(files: Files, plan: Plan, record: CalibrationRecord) -> Calibration:
    path = f"sherl/{record.file}"
    planned = plan.files.get(record.file)
    data = files.read(path, DOCUMENT_BYTES)
    if planned is None or data is None or planned.file_differs(data):
        raise StoreCorrupt(f"{files.place(path)}: the calibration is missing, or not the one that was committed")
    found = parse(Calibration, data, files.place(path))
    _refuse_uncovered(plan, {record.file: found})
    return found


def _refuse_uncovered(plan: Plan, calibrations: Mapping[str, Calibration]) -> None:
    for array in plan.arrays():
        record, stream = array.stream_plan.calibration, array.stream_plan
        if record is not None and record.file in calibrations:
            found = calibrations[record.file]
            if not found.covers(stream.tap_widths) or found.outliers != record.outliers:
                raise StoreCorrupt(f"{record.file}: the calibration is of other taps or channels than {array.path}")


def _fit(
    tap: int, rows: NDArray[Any], most: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int], list[float]]:
    """Shift and scale [width] of a tap, its channels in the order in which they become outliers, and the error with
    0 to `most` of them.
    """
    if not np.isfinite(rows).all():
        raise NonFinite(
            f"tap h{tap:02d}: the sample holds NaN or infinite values, the model's own states are not finite"
        )
    if not len(rows):
        width = rows.shape[1]
        return np.zeros(width), np.ones(width), list(range(most)), [0.0] * (most + 1)
    low, shift, high = np.quantile(rows, [0.158655, 0.5, 0.841345], axis=0).astype(np.float64)
    spread = (high - low) / 2
    deviation = rows.std(axis=0, dtype=np.float64)
    # a rectified channel has one value in most rows: its quantiles say nothing of the others
    scale = np.maximum(spread, np.where(low == shift, 1.0, _LEAST_OF_DEVIATION) * deviation)
    scale = np.maximum(scale, _LEAST_OF_MEDIAN * np.median(scale))
    scale = np.maximum(scale, max(float(scale.max()) * 1e-6, 1e-20))
    normalised = np.abs((rows.astype(np.float32) - shift.astype(np.float32)) / scale.astype(np.float32))
    # Only the largest channels of a row can set its scale while at most `most` of them are taken away.
    channels = np.argpartition(normalised, -min(most + 2, len(scale)), axis=1)[:, -min(most + 2, len(scale)) :]
    energy = np.take_along_axis(normalised, channels, axis=1).astype(np.float64) ** 2
    chosen: list[int] = []
    errors: list[float] = []
    for _ in range(most + 1):
        first = energy.argmax(axis=1)[:, None]
        largest = np.take_along_axis(energy, first, axis=1)[:, 0]
        # rounding to steps of s errs by s / sqrt(12)
        errors.append(float(np.sqrt(largest.mean() / 12)) / LEVELS)
        rest = energy.copy()
        np.put_along_axis(rest, first, 0, axis=1)
        owner = np.take_along_axis(channels, first, axis=1)[:, 0]
        gained = np.bincount(owner, weights=largest - rest.max(axis=1), minlength=len(scale))
        gained[chosen] = -1
        chosen.append(int(gained.argmax()))
        energy[channels == chosen[-1]] = 0
    return shift, scale, chosen[:most], errors


def _rounded(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")
