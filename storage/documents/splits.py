"""The plan of one split: its row groups, the shape of its streams, its units and its example tables."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Final, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    field_validator,
    model_serializer,
    model_validator,
)

from ..codecs.int8 import stored_width, tap_outliers
from .base import Count, Document, FileRecord, Positive
from .paths import Name, RelativePath, table_path

_MOST_CHUNK_VALUES: Final = 1 << 30
_MOST_STREAMS: Final = 64


@dataclass(frozen=True)
class Unit:
    """One shard of every array of a split: `groups` row groups, holding `examples` consecutive examples."""

    split: str
    index: int
    first_group: int
    groups: int
    first_example: int
    examples: int

    @property
    def name(self) -> str:
        """As in receipts: `train-00003`."""
        return f"{self.split}-{self.index:05d}"

    @property
    def receipt_path(self) -> str:
        """Path of its receipt in the store, without the receipts of arrays that were added later."""
        return f"sherl/receipts/{self.name}.json"


@dataclass(frozen=True)
class TablePlan:
    """One example table: parquet, one row group for each of `units`. `record` is None until it is written."""

    path: str
    record: FileRecord | None
    units: tuple[Unit, ...]

    @property
    def name(self) -> str:
        """As callers name it: `train`, or `train.2` for the first part that was added."""
        return self.path.removeprefix("sherl/examples/").removesuffix(".parquet")


class CalibrationRecord(Document):
    """The calibration that an int8 stream is encoded with: its file, under `sherl/`, and the outlier channels of its widest
    taps."""

    file: Annotated[RelativePath, StringConstraints(pattern=r"^calibration/")]
    outliers: Count


class StreamPlan(Document):
    """One stream of a split: its arrays are [groups * chunk_rows, stored width], one a tap.

    width: channels of a row of values, of the widest tap. widths: of each tap where they are not all as wide, and absent
    from the JSON of other streams. calibration: of int8 streams, and absent from the JSON of others.
    """

    width: Positive
    widths: tuple[Positive, ...] | None = None
    taps: Annotated[tuple[Annotated[int, Field(ge=0, lt=10_000)], ...], Field(min_length=1)]
    chunk_rows: Positive
    tokens: Count
    segments: Count
    longest: Count
    content_key: str
    calibration: CalibrationRecord | None = None

    @property
    def tap_widths(self) -> dict[int, int]:
        """Width of every tap."""
        return dict(zip(self.taps, self.widths or (self.width,) * len(self.taps), strict=True))

    def stored_width(self, tap: int) -> int:
        """Stored numbers of a row: the width of the tap's array; times the encoding's itemsize, the bytes of a row."""
        width = self.tap_widths[tap]
        if self.calibration is None:
            return width
        return stored_width(width, tap_outliers(self.calibration.outliers, width, self.width))

    @property
    def row_numbers(self) -> int:
        """Stored numbers of a row in all taps."""
        return sum(map(self.stored_width, self.taps))

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        for name in ("widths", "calibration"):
            if fields[name] is None:
                del fields[name]
        return fields

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.widths is not None and (
            len(self.widths) != len(self.taps) or len(set(self.widths)) == 1 or max(self.widths) != self.width
        ):
            raise ValueError(f"widths {list(self.widths)}: one a tap, not all the same, the widest of {self.width}")
        if self.chunk_rows * self.width > _MOST_CHUNK_VALUES:
            raise ValueError(f"a chunk of {self.chunk_rows} rows of {self.width} is larger than any store has")
        return self

    @field_validator("taps")
    @classmethod
    def _ascending(cls, taps: tuple[int, ...]) -> tuple[int, ...]:
        if list(taps) != sorted(set(taps)):
            raise ValueError("taps must ascend and not repeat")
        return taps


class PartPlan(Document):
    """Examples that were added to a split later: they have a seeded order and a table of their own.

    first_group: the row group they begin with, the first of a unit; groups before it that hold no example are gaps.
    """

    first_group: Positive
    examples: Positive
    order_key: str
    table: FileRecord | None = None
    content_keys: Annotated[dict[Name, str], Field(max_length=_MOST_STREAMS)]


class SplitPlan(Document):
    """One split: how many examples lie in each row group, and the shape of its streams.

    parts: what was added to the split since it was begun, absent from the JSON of a split that has not grown. A row
    group without examples is a gap between two parts: no chunk, never served.
    """

    examples: Positive
    groups: Positive
    groups_per_unit: Annotated[int, Field(ge=1, le=64)]
    group_examples: tuple[Count, ...]
    order_key: str
    table: FileRecord | None = None
    streams: Annotated[dict[Name, StreamPlan], Field(min_length=1, max_length=_MOST_STREAMS)]
    parts: tuple[PartPlan, ...] = ()

    @model_validator(mode="after")
    def _sums(self) -> Self:
        if len(self.group_examples) != self.groups or sum(self.group_examples) != self.examples:
            raise ValueError("group_examples must have one entry a group and sum to examples")
        starts = [0, *(part.first_group for part in self.parts)]
        if starts != sorted(set(starts)) or starts[-1] >= self.groups:
            raise ValueError("parts must ascend and lie in the split")
        for start, stop in pairwise([*starts, self.groups]):
            held = self.group_examples[start:stop]
            full = len(held) - next((n for n, count in enumerate(reversed(held)) if count), len(held))
            gap = len(held) - full
            if not full or 0 in held[:full] or (gap if stop == self.groups else gap != -full % self.groups_per_unit):
                raise ValueError("row groups without examples may only fill the last unit before a part")
        for part, (start, stop) in zip(self.parts, pairwise([*starts[1:], self.groups]), strict=True):
            if start % self.groups_per_unit or sum(self.group_examples[start:stop]) != part.examples:
                raise ValueError("a part must begin with a unit and hold the examples of its row groups")
            if not set(part.content_keys) >= set(self.streams):
                raise ValueError("a part needs a content key for each stream")
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if not self.parts:
            del fields["parts"]
        return fields

    @property
    def held_groups(self) -> int:
        """Row groups that hold examples."""
        return self.groups - self.group_examples.count(0)

    def units(self, split: str) -> list[Unit]:
        """The units of the split, in order."""
        units = []
        first_example = 0
        for index, first in enumerate(range(0, self.groups, self.groups_per_unit)):
            counts = self.group_examples[first : first + self.groups_per_unit]
            examples = sum(counts)
            units.append(Unit(split, index, first, len(counts) - counts.count(0), first_example, examples))
            first_example += examples
        return units

    def tables(self, split: str) -> list[TablePlan]:
        """The example tables of the split: one a part, the first part's first."""
        records = [self.table, *(part.table for part in self.parts)]
        starts = [0, *(part.first_group // self.groups_per_unit for part in self.parts)]
        units = self.units(split)
        return [
            TablePlan(table_path(split, number + 1), record, tuple(units[start:stop]))
            for number, (record, (start, stop)) in enumerate(zip(records, pairwise([*starts, len(units)]), strict=True))
        ]
