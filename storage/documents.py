"""The JSON documents of a store: plan, receipts, manifest; strict models, so that a foreign or damaged file
is refused.

    sherl/plan.json              Plan: what the store shall hold; written first, never changed
    sherl/plan-<n>.json          a whole Plan that extends the one before, where the store has grown
    sherl/receipts/<unit>.json   Receipt: one unit is committed, with the digest of each of its shards
    sherl/receipts/<unit>.<n>.json    the same of the arrays that plan n added to the unit
    sherl/manifest-<n>.json      Manifest: everything of one plan is there; the newest valid one of the last plan wins

Names in a document become paths, so they are limited to what cannot leave the store.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from . import keys
from .codecs import encoding as known_encoding
from .codecs.int8 import stored_width
from .errors import InvalidInput, StoreCorrupt, StoreNotUsable

FORMAT: Final = 1
KNOWN_FEATURES: Final[frozenset[str]] = frozenset({"bitround", "int8", "zstd"})
DOCUMENT_BYTES: Final = 64 << 20
"""No document of a store is larger; a larger file is refused unread."""

PLAN: Final = "sherl/plan.json"
_PART: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
_RESERVED: Final = ("sherl", "zarr.json")
_OWN_FOLDERS: Final = ("examples", "leases", "receipts")
MOST_CHUNK_VALUES: Final = 1 << 30
_MOST_SPLITS: Final = 256
_MOST_STREAMS: Final = 64
_SHOWN_CHARACTERS: Final = 200

Name = Annotated[str, StringConstraints(pattern=rf"^{_PART}$")]
RelativePath = Annotated[str, StringConstraints(pattern=rf"^{_PART}(/{_PART}){{0,7}}$", max_length=512)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Checksum = Annotated[int, Field(ge=0, lt=1 << 32)]
Positive = Annotated[int, Field(ge=1, lt=1 << 62)]
_Bytes = bytes  # `bytes` names a field in the classes below
Scalar = str | int | float | bool | None


class Document(BaseModel):
    """Frozen, no unknown keys, no conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """The bytes of the file: canonical JSON."""
        return keys.canonical(self.model_dump(mode="json"))

    @property
    def file_sha256(self) -> str:
        """Digest of the file."""
        return keys.digest_bytes(self.to_bytes())


class FileRecord(Document):
    """A file's size and content."""

    bytes: Count
    sha256: Digest

    def file_differs(self, data: _Bytes) -> bool:
        """Whether `data` is not the content that was recorded."""
        return len(data) != self.bytes or keys.digest_bytes(data) != self.sha256


class CalibrationRecord(Document):
    """The calibration that an int8 stream is encoded with: its file, under `sherl/`, and its outlier channels."""

    file: Annotated[RelativePath, StringConstraints(pattern=r"^calibration/")]
    outliers: Count


class StreamPlan(Document):
    """One stream of a split: its arrays are [groups * chunk_rows, stored_width], one a tap.

    width: channels of a row of values. calibration: of int8 streams, and absent from the JSON of others.
    """

    width: Positive
    taps: Annotated[tuple[Annotated[int, Field(ge=0, lt=10_000)], ...], Field(min_length=1)]
    chunk_rows: Positive
    tokens: Count
    segments: Count
    longest: Count
    content_key: str
    calibration: CalibrationRecord | None = None

    @property
    def stored_width(self) -> int:
        """Stored numbers of a row: the width of its arrays; times the encoding's itemsize, the bytes of a row."""
        return self.width if self.calibration is None else stored_width(self.width, self.calibration.outliers)

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if self.calibration is None:
            del fields["calibration"]
        return fields

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.chunk_rows * self.width > MOST_CHUNK_VALUES:
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

    def units(self, split: str) -> list["Unit"]:
        """The units of the split, in order."""
        units = []
        first_example = 0
        for index, first in enumerate(range(0, self.groups, self.groups_per_unit)):
            held = [count for count in self.group_examples[first : first + self.groups_per_unit] if count]
            units.append(Unit(split, index, first, len(held), first_example, sum(held)))
            first_example += sum(held)
        return units

    def tables(self, split: str) -> list["TablePlan"]:
        """The example tables of the split: one a part, the first part's first."""
        records = [self.table, *(part.table for part in self.parts)]
        starts = [0, *(part.first_group // self.groups_per_unit for part in self.parts)]
        units = self.units(split)
        return [
            TablePlan(table_path(split, number + 1), record, tuple(units[start:stop]))
            for number, (record, (start, stop)) in enumerate(zip(records, pairwise([*starts, len(units)]), strict=True))
        ]


class Plan(Document):
    """What a store shall hold, and what it is made from; see docs/design.md."""

    format: Literal[1] = FORMAT
    features: tuple[str, ...] = ()
    encoding: str
    identity: dict[str, Scalar]
    producer: dict[str, JsonValue]
    environment: dict[str, str]
    splits: Annotated[dict[Name, SplitPlan], Field(min_length=1, max_length=_MOST_SPLITS)]
    files: dict[RelativePath, FileRecord] = {}
    metadata: dict[RelativePath, FileRecord] = {}
    extends: Digest | None = None
    """Digest of the plan that this one extends; absent from the JSON of a store's first plan."""

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if self.extends is None:
            del fields["extends"]
        return fields

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        try:
            canonical = known_encoding(name).name
        except InvalidInput as error:
            raise ValueError(str(error)) from None
        if name != canonical:
            raise ValueError(f"encoding {name!r} must be written as {canonical!r}")
        return name

    @model_validator(mode="after")
    def _calibrated(self) -> Self:
        needed = known_encoding(self.encoding).calibrated
        for split, split_plan in self.splits.items():
            for stream, stream_plan in split_plan.streams.items():
                record = stream_plan.calibration
                if needed != (record is not None):
                    raise ValueError(
                        f"{split}/{stream}: {self.encoding} {'needs a' if needed else 'has no'} calibration"
                    )
                if record is not None and record.outliers >= stream_plan.width:
                    raise ValueError(f"{split}/{stream}: {record.outliers} outliers of {stream_plan.width} channels")
        return self

    @model_validator(mode="after")
    def _names(self) -> Self:
        for split in self.splits:
            if split in _RESERVED:
                raise ValueError(f"a split cannot be called {split!r}")
        for path in self.files:
            folder, _, rest = path.partition("/")
            if not rest or folder in _OWN_FOLDERS:
                raise ValueError(f"file {path!r} must lie in a folder of its own, such as weights/")
        paths = [table.path for table in self.tables()]
        if len(paths) != len(set(paths)):
            raise ValueError("two splits would share an example table: no split can be called as a part of another is")
        return self

    def arrays(self) -> Iterator["ArrayPlan"]:
        """Every array of the store, in order of split, stream and tap."""
        for split, split_plan in sorted(self.splits.items()):
            for stream, stream_plan in sorted(split_plan.streams.items()):
                for tap in stream_plan.taps:
                    yield ArrayPlan(split, stream, tap, split_plan, stream_plan)

    def units(self) -> list["Unit"]:
        """Every unit of the store, in order of split and index."""
        return [unit for split in sorted(self.splits) for unit in self.splits[split].units(split)]

    def tables(self) -> list["TablePlan"]:
        """The example tables of every split."""
        return [table for split in sorted(self.splits) for table in self.splits[split].tables(split)]

    @property
    def fingerprint(self) -> str:
        """What the store is made from: identity and the order key of each split."""
        order_keys = {name: split.order_key for name, split in self.splits.items()}
        return keys.digest({"identity": self.identity, "order_keys": order_keys})


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


@dataclass(frozen=True)
class ArrayPlan:
    """One array of a store: the hidden states of one tap."""

    split: str
    stream: str
    tap: int
    split_plan: SplitPlan
    stream_plan: StreamPlan

    @property
    def path(self) -> str:
        """Path of the array in the store: `train/encoder/h03`."""
        return array_path(self.split, self.stream, self.tap)

    @property
    def rows(self) -> int:
        """Rows of the array, fill included."""
        return self.split_plan.groups * self.stream_plan.chunk_rows


def array_path(split: str, stream: str, tap: int) -> str:
    """Path of an array in the store: `train/encoder/h03`."""
    return f"{split}/{stream}/h{tap:02d}"


def shard_path(array: str, unit_index: int) -> str:
    """Path of the file that holds one unit of an array."""
    return f"{array}/c/{unit_index}/0"


def table_path(split: str, part: int = 1) -> str:
    """Path of the example table of a split, or of a part that was added to it: 2, 3, ..."""
    return f"sherl/examples/{split}.parquet" if part == 1 else f"sherl/examples/{split}.{part}.parquet"


def plan_path(number: int) -> str:
    """Path of plan `number`, counted from 1."""
    return PLAN if number == 1 else f"sherl/plan-{number}.json"


class ShardRecord(Document):
    """One committed shard: where it lies, its content, and how many rows hold values.

    crc32c: the checksum of each chunk, so that a reader tells a chunk from the whole chunk of another shard.
    """

    path: RelativePath
    bytes: Count
    sha256: Digest
    rows: Count
    crc32c: Annotated[tuple[Checksum, ...], Field(min_length=1, max_length=64)]
    nan: Literal[0] = 0
    inf: Literal[0] = 0
    overflow: Literal[0] = 0


class Receipt(Document):
    """The commit of one unit: its shards by array path. `plan` is the digest of the plan that asked for them first."""

    format: Literal[1] = FORMAT
    plan: Digest
    unit: Name
    split: Name
    index: Count
    arrays: dict[RelativePath, ShardRecord]


def checksums(receipts: Iterable[Receipt]) -> dict[str, tuple[int, ...]]:
    """The crc32c of each chunk of every shard of some receipts, by the shard's path."""
    return {record.path: record.crc32c for receipt in receipts for record in receipt.arrays.values()}


class Manifest(Document):
    """The commit of a whole store: digest of the plan, of each receipt, and the root over all shards."""

    format: Literal[1] = FORMAT
    features: tuple[str, ...] = ()
    plan: Digest
    fingerprint: Digest
    digest: Digest
    receipts: dict[Name, Digest]


def root_digest(plan: Plan, receipts: dict[str, Receipt]) -> str:
    """Digest over what a store is made from and every shard of the given receipts.

    Not over the plan's bytes: those name the model's and the data's place, which may change without a change of content.
    """
    units = [
        [name, sorted([record.path, record.sha256] for record in receipt.arrays.values())]
        for name, receipt in sorted(receipts.items())
    ]
    return keys.digest({"fingerprint": plan.fingerprint, "units": units})


AnyDocument = TypeVar("AnyDocument", bound=Document)


def parse(kind: type[AnyDocument], data: bytes, path: str) -> AnyDocument:
    """A document from its bytes.

    Raises StoreCorrupt where they are not such a document, StoreNotUsable where a newer version of this
    package wrote it.
    """
    _refuse_newer(data, path)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        told = _plain(f"{place}: {first['msg']}")
        raise StoreCorrupt(f"{path}: not a valid {kind.__name__.lower()}: {told}") from None


def _refuse_newer(data: bytes, path: str) -> None:
    try:
        tree: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise StoreCorrupt(f"{path}: not valid JSON") from None
    if not isinstance(tree, dict):
        raise StoreCorrupt(f"{path}: not a JSON object")
    number = tree.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise StoreNotUsable(f"{path}: store format {number}, this version reads {FORMAT}: update sherl-cache")
    features = tree.get("features")
    named = [str(name) for name in features] if isinstance(features, list) else []
    unknown = [name for name in named if name not in KNOWN_FEATURES]
    if unknown:
        raise StoreNotUsable(f"{path}: needs {_plain(', '.join(unknown))}, unknown to this version: update sherl-cache")


def _plain(text: str) -> str:
    """Text out of a document as a message may show it: short, and of characters that every terminal has."""
    shown = text.encode("ascii", "backslashreplace").decode("ascii")
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."


def is_relative_path(text: str) -> bool:
    """Whether `text` is a path that documents may hold."""
    return len(text) <= 512 and re.fullmatch(rf"{_PART}(/{_PART}){{0,7}}", text) is not None
