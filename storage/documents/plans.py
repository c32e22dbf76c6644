"""What a store shall hold, and what it is made from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from .. import keys
from ..codecs import encoding as known_encoding
from ..errors import InvalidInput
from ..notebook import facts_html, table_html, taps_text
from .base import FORMAT, Digest, Document, FileRecord
from .paths import Name, RelativePath, array_path
from .splits import SplitPlan, StreamPlan, TablePlan, Unit

_RESERVED: Final = ("sherl", "zarr.json")
_OWN_FOLDERS: Final = ("analysis", "examples", "leases", "receipts")
_MOST_SPLITS: Final = 256

Scalar = str | int | float | bool | None


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

    @property
    def width(self) -> int:
        """Channels of a row of values."""
        return self.stream_plan.tap_widths[self.tap]

    @property
    def stored_width(self) -> int:
        """Stored numbers of a row: the width of the array."""
        return self.stream_plan.stored_width(self.tap)


class Plan(Document):
    """What a store shall hold, and what it is made from; see docs/design.md."""

    format: Literal[1] = FORMAT
    features: tuple[str, ...] = ()
    encoding: str
    identity: dict[str, Scalar]
    producer: dict[str, JsonValue]
    environment: dict[str, str]
    splits: Annotated[dict[Name, SplitPlan], Field(min_length=1, max_length=_MOST_SPLITS)]
    files: dict[RelativePath, FileRecord] = Field(default_factory=dict)
    metadata: dict[RelativePath, FileRecord] = Field(default_factory=dict)
    extends: Digest | None = None
    """Digest of the plan that this one extends; absent from the JSON of a store's first plan."""

    def _repr_html_(self) -> str:
        rows = [
            (name, split.examples, stream, taps_text(plan.taps), plan.width, plan.tokens)
            for name, split in self.splits.items()
            for stream, plan in split.streams.items()
        ]
        heads = ("split", "examples", "stream", "taps", "width", "tokens")
        return facts_html("plan", [("encoding", self.encoding)], table_html(heads, rows))

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

    def arrays(self) -> Iterator[ArrayPlan]:
        """Every array of the store, in order of split, stream and tap."""
        for split, split_plan in sorted(self.splits.items()):
            for stream, stream_plan in sorted(split_plan.streams.items()):
                for tap in stream_plan.taps:
                    yield ArrayPlan(split, stream, tap, split_plan, stream_plan)

    def units(self) -> list[Unit]:
        """Every unit of the store, in order of split and index."""
        return [unit for split in sorted(self.splits) for unit in self.splits[split].units(split)]

    def tables(self) -> list[TablePlan]:
        """The example tables of every split."""
        return [table for split in sorted(self.splits) for table in self.splits[split].tables(split)]

    @property
    def needed_features(self) -> tuple[str, ...]:
        """What a reader must know beyond the four float formats, and streams whose taps are equally wide."""
        mixed = any(stream.widths for split in self.splits.values() for stream in split.streams.values())
        return tuple(sorted({*known_encoding(self.encoding).features, *(("widths",) if mixed else ())}))

    @property
    def fingerprint(self) -> str:
        """What the store is made from: identity and the order key of each split."""
        order_keys = {name: split.order_key for name, split in self.splits.items()}
        return keys.digest({"identity": self.identity, "order_keys": order_keys})
