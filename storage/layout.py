"""Packing: from lengths to chunk heights, row groups and offsets. Pure: no file is touched.

Examples are taken in written order, a seeded permutation, and added to a row group until the chunk of some
stream is full; an example lies whole in one group, its segments on consecutive rows. Rows left over in a
chunk are fill. So every offset is known before any forward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from . import keys
from .documents import CalibrationRecord, SplitPlan, StreamPlan, Unit
from .errors import DataError, InvalidInput
from .order import permutation
from .ragged import LengthsByStream, Ragged, cumulative
from .widths import Width, width_by_tap, width_fields

CHUNK_BYTES: Final = (1 << 20, 4 << 20)
UNIT_MEMORY: Final = 512 << 20
MOST_FILL: Final = 0.03
_ROW_STEP: Final = 8
_FEW_GROUPS: Final = 16
_MOST_GROUPS_PER_UNIT: Final = 64
_HEIGHTS_PER_MEAN: Final = (1.0, 1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5)


@dataclass(frozen=True)
class PackedStream:
    """How one stream of a split is packed; see StreamPlan."""

    widths: dict[int, int]
    """Of every tap."""
    chunk_rows: int
    lengths: Ragged
    """In written order."""
    offsets: NDArray[np.int64]
    """Physical row of each segment, in written order: [segments]."""
    fill_rows: int

    @property
    def taps(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(self.widths)

    @property
    def tokens(self) -> int:
        """Rows that hold values."""
        return int(self.lengths.values.sum(dtype=np.int64))


@dataclass(frozen=True)
class PackedSplit:
    """A packed split: which example goes where.

    order: [examples], the source index of each example in written order; group_examples: [groups].
    """

    split: str
    order: NDArray[np.int64]
    group_examples: NDArray[np.int64]
    groups_per_unit: int
    order_key: str
    streams: dict[str, PackedStream]

    @property
    def offsets(self) -> dict[str, NDArray[np.int64]]:
        """Physical row of each segment, by stream, in written order."""
        return {name: stream.offsets for name, stream in self.streams.items()}

    @property
    def lengths(self) -> dict[str, Ragged]:
        """Lengths by stream, in written order."""
        return {name: stream.lengths for name, stream in self.streams.items()}

    @property
    def fill_rows(self) -> dict[str, int]:
        """Rows of each stream's arrays that hold no value."""
        return {name: stream.fill_rows for name, stream in self.streams.items()}

    @property
    def unit_examples(self) -> list[int]:
        """Examples of each unit."""
        cuts = range(0, len(self.group_examples), self.groups_per_unit)
        return [int(self.group_examples[cut : cut + self.groups_per_unit].sum()) for cut in cuts]

    def split_plan(
        self, content_keys: Mapping[str, str], calibrations: Mapping[str, CalibrationRecord] | None = None
    ) -> SplitPlan:
        """The plan's entry for this split, with the content key of each stream, and its calibration where rows are int8;
        its table comes later.
        """
        streams = {
            name: StreamPlan(
                **width_fields(stream.widths),
                chunk_rows=stream.chunk_rows,
                tokens=stream.tokens,
                segments=len(stream.lengths.values),
                longest=int(stream.lengths.values.max(initial=0)),
                content_key=content_keys[name],
                calibration=(calibrations or {}).get(name),
            )
            for name, stream in self.streams.items()
        }
        return SplitPlan(
            examples=len(self.order),
            groups=len(self.group_examples),
            groups_per_unit=self.groups_per_unit,
            group_examples=tuple(self.group_examples.tolist()),
            order_key=self.order_key,
            streams=streams,
        )

    def units(self) -> list[Unit]:
        """The units of the split, in order."""
        return self.split_plan(dict.fromkeys(self.streams, "")).units(self.split)


def plan_split(
    lengths: LengthsByStream,
    *,
    widths: Mapping[str, Width],
    itemsize: int,
    taps: Mapping[str, Sequence[int]],
    seed: int = 0,
    split: str = "train",
    source_key: str = "",
    chunk_bytes: tuple[int, int] = CHUNK_BYTES,
    unit_memory: int = UNIT_MEMORY,
    stored_widths: Mapping[str, Width] | None = None,
) -> PackedSplit:
    """Pack a split whose lengths are given by stream, in source order.

    widths: of a row of values by stream, of all taps or by tap; itemsize: bytes of a stored number; stored_widths: numbers
    of a stored row, where they are not the widths.
    source_key: digest of the examples' ids in source order; it enters the
    order key. chunk_bytes: smallest and largest bytes of a chunk; unit_memory: bytes of a unit in all arrays.
    Raises DataError for a split without examples, InvalidInput where the arguments do not fit each other.
    """
    examples = _checked(lengths, widths, taps, split)
    order = written_order(examples, split, seed)
    numbers = {name: width_by_tap({**widths, **(stored_widths or {})}[name], taps[name]) for name in lengths}
    written = {name: ragged.take(order).narrow() for name, ragged in lengths.items()}
    rows = {name: cumulative(ragged.totals()) for name, ragged in written.items()}
    row_bytes = {name: sum(numbers[name].values()) * itemsize for name in written}
    widest = {name: max(numbers[name].values()) * itemsize for name in written}
    heights, firsts = _choose_heights(rows, row_bytes, widest, chunk_bytes)

    groups = len(firsts) - 1
    group_bytes = sum(heights[name] * row_bytes[name] for name in heights)
    per_unit = min(max(unit_memory // group_bytes, 1), _MOST_GROUPS_PER_UNIT, groups)
    streams = {
        name: PackedStream(
            widths=width_by_tap(widths[name], taps[name]),
            chunk_rows=heights[name],
            lengths=written[name],
            offsets=segment_offsets(written[name], firsts, heights[name]),
            fill_rows=groups * heights[name] - int(rows[name][-1]),
        )
        for name in written
    }
    group_examples = np.diff(firsts)
    order_key = keys.digest(
        {
            "split": split,
            "seed": seed,
            "source": source_key,
            "order": numbers_digest(order),
            "groups": numbers_digest(group_examples),
            "lengths": {
                name: [numbers_digest(ragged.values), numbers_digest(ragged.counts)] for name, ragged in written.items()
            },
        }
    )
    return PackedSplit(split, order, group_examples, per_unit, order_key, streams)


def written_order(examples: int, split: str, seed: int) -> NDArray[np.int64]:
    """The source index of each example of a split in the order in which they lie in the store: [examples]."""
    return permutation(examples, "written order", split, seed)


def segment_offsets(lengths: Ragged, first_examples: NDArray[np.int64], chunk_rows: int) -> NDArray[np.int64]:
    """Physical row of each segment: [segments].

    lengths: of examples in written order; first_examples: [groups + 1], the example each group begins with.
    """
    within = cumulative(lengths.values)
    first_segments = lengths.starts()[first_examples]
    groups = len(first_examples) - 1
    shift = np.arange(groups, dtype=np.int64) * chunk_rows - within[first_segments[:-1]]
    return within[:-1] + np.repeat(shift, np.diff(first_segments))


def pack(rows: Mapping[str, NDArray[np.int64]], heights: Mapping[str, int]) -> NDArray[np.int64]:
    """Greedy packing: the example each group begins with, then the number of examples: [groups + 1].

    rows: running sums of each example's rows by stream, [examples + 1]; no example may be higher than a
    chunk.
    """
    examples = len(next(iter(rows.values()))) - 1
    sums = [(sums, heights[name]) for name, sums in rows.items()]
    firsts = [0]
    while firsts[-1] < examples:
        first = firsts[-1]
        firsts.append(min(int(s.searchsorted(s[first] + height, side="right")) - 1 for s, height in sums))
    return np.asarray(firsts, dtype=np.int64)


def _choose_heights(
    rows: Mapping[str, NDArray[np.int64]],
    row_bytes: Mapping[str, int],
    tap_row_bytes: Mapping[str, int],
    chunk_bytes: tuple[int, int],
) -> tuple[dict[str, int], NDArray[np.int64]]:
    """Chunk rows by stream and the packing they give.

    The stream with most bytes gets a power of two, the smallest whose fill over all streams is small, else
    the one with the least fill; the others follow what its groups hold.
    """
    primary = max(sorted(rows), key=lambda name: int(rows[name][-1]) * row_bytes[name])
    used = sum(int(rows[name][-1]) * row_bytes[name] for name in rows)
    best: dict[str, int] = {}
    least_fill = 1.0
    for height in _primary_heights(rows[primary], tap_row_bytes[primary], chunk_bytes):
        heights = _follow({primary: height}, rows, row_bytes)
        groups = len(pack(rows, heights)) - 1
        fill = 1 - used / (groups * _group_bytes(heights, row_bytes))
        if not best or fill < least_fill:
            best, least_fill = heights, fill
        if fill < MOST_FILL:
            break
    return best, pack(rows, best)


def _follow(
    heights: dict[str, int], rows: Mapping[str, NDArray[np.int64]], row_bytes: Mapping[str, int]
) -> dict[str, int]:
    """Heights of the remaining streams: of a few round the mean rows of a group, the one with the least
    bytes.
    """
    for name in sorted(set(rows) - set(heights), key=lambda name: -int(rows[name][-1]) * row_bytes[name]):
        packed = {known: rows[known] for known in heights}
        held = np.diff(rows[name][pack(packed, heights)])
        largest = int(np.diff(rows[name]).max(initial=0))
        candidates = {_round_up(max(held.mean() * factor, largest, 1)) for factor in _HEIGHTS_PER_MEAN}
        candidates.add(_round_up(max(int(held.max()), 1)))
        packed[name] = rows[name]
        tried = [{**heights, name: candidate} for candidate in sorted(candidates)]
        sizes = [(len(pack(packed, trial)) - 1) * _group_bytes(trial, row_bytes) for trial in tried]
        heights = tried[int(np.argmin(sizes))]
    return heights


def _group_bytes(heights: Mapping[str, int], row_bytes: Mapping[str, int]) -> int:
    return sum(height * row_bytes[name] for name, height in heights.items())


def _primary_heights(rows: NDArray[np.int64], tap_row_bytes: int, chunk_bytes: tuple[int, int]) -> list[int]:
    """The powers of two to try, lowest first: those within `chunk_bytes`, none lower than an example.

    A small split gets lower chunks, so that it still has some groups to permute.
    """
    needed = _power_of_two(max(int(np.diff(rows).max(initial=0)), 1))
    low = _power_of_two(max(-(-chunk_bytes[0] // tap_row_bytes), 1))
    high = max(low, _power_of_two(chunk_bytes[1] // tap_row_bytes // 2 + 1))
    few = _power_of_two(int(rows[-1]) // _FEW_GROUPS // 2 + 1)
    low, high = (few, low) if few < low else (low, high)
    low, high = max(low, needed), max(high, needed)
    return [1 << power for power in range(low.bit_length() - 1, high.bit_length())]


def _power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


def _round_up(number: float) -> int:
    return int(-(-number // _ROW_STEP)) * _ROW_STEP


def numbers_digest(numbers: NDArray[Any]) -> str:
    return keys.digest_bytes(numbers.astype("<i8").tobytes())


def _checked(
    lengths: LengthsByStream, widths: Mapping[str, Width], taps: Mapping[str, Sequence[int]], split: str
) -> int:
    if not lengths:
        raise InvalidInput(f"split {split!r}: lengths of at least one stream are needed")
    examples = {name: len(ragged.counts) for name, ragged in lengths.items()}
    if len(set(examples.values())) != 1:
        raise InvalidInput(f"split {split!r}: streams differ in their number of examples: {examples}")
    if 0 in examples.values():
        raise DataError(f"split {split!r} holds no examples: at least one is needed")
    for name in lengths:
        if not taps.get(name) or min(width_by_tap(widths.get(name, 0), taps[name]).values()) < 1:
            raise InvalidInput(f"split {split!r}: stream {name!r} needs a width and at least one tap")
    return next(iter(examples.values()))
