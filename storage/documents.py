"""The JSON documents of a store: plan, receipts, manifest; strict models, so that a foreign or damaged file
is refused.

    sherl/plan.json              Plan: what the store shall hold; written first, never changed
    sherl/receipts/<unit>.json   Receipt: one unit is committed, with the digest of each of its shards
    sherl/manifest-<n>.json      Manifest: everything is there; the newest valid one wins

Names in a document become paths, so they are limited to what cannot leave the store.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
_OWN_FOLDERS: Final = ("examples", "receipts")

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

    @field_validator("taps")
    @classmethod
    def _ascending(cls, taps: tuple[int, ...]) -> tuple[int, ...]:
        if list(taps) != sorted(set(taps)):
            raise ValueError("taps must ascend and not repeat")
        return taps


class SplitPlan(Document):
    """One split: how many examples lie in each row group, and the shape of its streams."""

    examples: Positive
    groups: Positive
    groups_per_unit: Annotated[int, Field(ge=1, le=64)]
    group_examples: tuple[Positive, ...]
    order_key: str
    table: FileRecord | None = None
    streams: Annotated[dict[Name, StreamPlan], Field(min_length=1)]

    @model_validator(mode="after")
    def _sums(self) -> Self:
        if len(self.group_examples) != self.groups or sum(self.group_examples) != self.examples:
            raise ValueError("group_examples must have one entry a group and sum to examples")
        return self

    def units(self, split: str) -> list["Unit"]:
        """The units of the split, in order."""
        units = []
        first_example = 0
        for index, first in enumerate(range(0, self.groups, self.groups_per_unit)):
            held = self.group_examples[first : first + self.groups_per_unit]
            units.append(Unit(split, index, first, len(held), first_example, sum(held)))
            first_example += sum(held)
        return units


class Plan(Document):
    """What a store shall hold, and what it is made from; see docs/design.md."""

    format: Literal[1] = FORMAT
    features: tuple[str, ...] = ()
    encoding: str
    identity: dict[str, Scalar]
    producer: dict[str, JsonValue]
    environment: dict[str, str]
    splits: Annotated[dict[Name, SplitPlan], Field(min_length=1)]
    files: dict[RelativePath, FileRecord] = {}
    metadata: dict[RelativePath, FileRecord] = {}

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
        """Path of its receipt in the store."""
        return f"sherl/receipts/{self.name}.json"


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


def table_path(split: str) -> str:
    """Path of a split's example table."""
    return f"sherl/examples/{split}.parquet"


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
    """The commit of one unit: its shards by array path. `plan` is the digest of the plan it belongs to."""

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
        raise StoreCorrupt(f"{path}: not a valid {kind.__name__.lower()}: {place}: {first['msg']}") from None


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
        raise StoreNotUsable(f"{path}: needs {', '.join(unknown)}, unknown to this version: update sherl-cache")


def is_relative_path(text: str) -> bool:
    """Whether `text` is a path that documents may hold."""
    return len(text) <= 512 and re.fullmatch(rf"{_PART}(/{_PART}){{0,7}}", text) is not None
