"""How a store differs from one that is asked for, field by field."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from . import keys
from .documents import FileRecord, Plan, SplitPlan
from .growth import DATA_FIELD, TAPS_FIELD, extends_split, same_widths
from .keys import shown

_ABSENT: Final = object()
_RECORD_FIELDS: Final = ("bytes", "sha256")

Class = Literal["numbers", "layout", "recorded"]
"""What a field means for a store: other numbers or other examples; the same numbers in other places or another order;
or nothing, it is noted only.
"""
PLAN_CLASSES: Final[Mapping[str, Class]] = MappingProxyType(
    {
        "format": "numbers",
        "features": "recorded",  # follow from the encoding and the widths
        "encoding": "numbers",
        "identity": "numbers",
        "producer": "recorded",
        "environment": "recorded",
        "files.bytes": "numbers",
        "files.sha256": "numbers",
        "metadata.bytes": "recorded",  # follows from the rest
        "metadata.sha256": "recorded",
        "extends": "recorded",
        "splits.examples": "numbers",
        "splits.groups": "layout",
        "splits.groups_per_unit": "layout",
        "splits.group_examples": "layout",
        "splits.order_key": "layout",
        "splits.table.bytes": "recorded",  # follows from the data and the order
        "splits.table.sha256": "recorded",
        "splits.parts.first_group": "layout",
        "splits.parts.examples": "numbers",
        "splits.parts.order_key": "layout",
        "splits.parts.table.bytes": "recorded",
        "splits.parts.table.sha256": "recorded",
        "splits.parts.content_keys": "numbers",
        "splits.streams.width": "numbers",
        "splits.streams.widths": "numbers",
        "splits.streams.taps": "numbers",
        "splits.streams.chunk_rows": "layout",
        "splits.streams.tokens": "recorded",  # follow from the data
        "splits.streams.segments": "recorded",
        "splits.streams.longest": "recorded",
        "splits.streams.content_key": "numbers",
        "splits.streams.calibration.file": "numbers",
        "splits.streams.calibration.outliers": "numbers",
    }
)
"""Every field of a plan, those of the documents in it by the names on the way there."""
_GROWING: Final = ("splits.examples", "splits.groups", "splits.group_examples", "splits.order_key")


@dataclass(frozen=True)
class Compared:
    """One field of a store and of a request. refused: it differs in a way that another store is needed for."""

    field: str
    stored: str
    asked: str
    meaning: Class
    differs: bool
    refused: bool


@dataclass(frozen=True)
class _Field:
    """One value of a plan: its field in PLAN_CLASSES, and whose it is. name: of an entry of `identity` or `files`."""

    field: str
    name: str = ""
    split: str | None = None
    stream: str | None = None
    part: int | None = None

    @property
    def shown(self) -> str:
        """As messages name it; identity fields go by their own names."""
        if self.field == "identity":
            return self.name
        if self.split is None:
            head, *rest = self.field.split(".")
            return ".".join([head, *([self.name] if self.name else []), *rest])
        last = self.field.removeprefix("splits.").removeprefix("streams.").removeprefix("parts.")
        part = [] if self.part is None else [f"parts.{self.part}"]
        stream = [] if self.stream is None else [self.stream]
        return ".".join(["splits", self.split, *part, *stream, last])


def compare(stored: Plan, asked: Plan, files: Mapping[str, FileRecord]) -> list[Compared]:
    """Every field of a store beside that of a request, those that decide first. files: blobs of the request."""
    here, there = dict(_fields(stored, stored.files)), dict(_fields(asked, files))
    found = []
    for field in sorted({**here, **there}, key=lambda field: (field.shown, field.field)):
        one, other = here.get(field, _ABSENT), there.get(field, _ABSENT)
        differs = _differ(one, other)
        refused = differs and not _may_differ(field, stored, asked)
        found.append(Compared(field.shown, _told(one), _told(other), PLAN_CLASSES[field.field], differs, refused))
    notes = (("environment", stored.environment, asked.environment), ("producer", stored.producer, asked.producer))
    for group, left, right in notes:
        for name in sorted(set(left) | set(right)):
            one, other = left.get(name, _ABSENT), right.get(name, _ABSENT)
            found.append(
                Compared(f"{group}.{name}", _told(one), _told(other), PLAN_CLASSES[group], _differ(one, other), False)
            )
    return list(dict.fromkeys(found))  # an identity may name the encoding too, as that of extract does


def differences(stored: Plan, asked: Plan, files: Mapping[str, FileRecord]) -> list[str]:
    """One line for each field in which a store and a request differ; empty when they are the same store.

    These are the fields that `compare` refuses: identity, encoding, splits, packing and content of every stream and
    part, and the blobs. Producer notes and environment are not. It is the same store, too, where one of both holds fewer
    taps of a stream, fewer splits, or a split without the parts that the other has added (the request never has fewer
    parts).
    """
    lines = [
        f"{item.field}: {item.stored} in the store, {item.asked} asked for"
        for item in compare(stored, asked, files)
        if item.refused
    ]
    return lines + list(_misfits(stored, asked))


def _differ(one: object, other: object) -> bool:
    return type(one) is not type(other) or one != other


def _may_differ(field: _Field, stored: Plan, asked: Plan) -> bool:
    """Whether growing, or asking for less, explains that a field differs."""
    if field.field == "identity" and field.name.startswith(TAPS_FIELD):
        return True  # the taps of each stream of each split are fields of their own
    split = field.split
    if field.field == "identity" and field.name.startswith(DATA_FIELD):
        split = field.name.removeprefix(DATA_FIELD)
    if split is None:
        return False
    here, there = stored.splits.get(split), asked.splits.get(split)
    if here is None or there is None:
        return here is not there
    if field.split is None or field.field in _GROWING:
        return _adds(here, there)
    if field.part is not None and field.part > len(here.parts) + 1:
        return _adds(here, there)
    if field.stream in here.streams and field.stream not in there.streams:
        return True
    if field.stream not in here.streams:
        return False
    stream, other = here.streams[field.stream], there.streams[field.stream]
    if field.field in ("splits.streams.width", "splits.streams.widths"):
        return stream.taps != other.taps and same_widths(stream, other)
    return field.field == "splits.streams.taps"


def _adds(stored: SplitPlan, asked: SplitPlan) -> bool:
    """Whether a request is a stored split with parts added to it."""
    return len(asked.parts) > len(stored.parts) and extends_split(stored, asked)


def _misfits(stored: Plan, asked: Plan) -> Iterator[str]:
    """What a store cannot take in although no field says so."""
    streams = {name: stream for split in stored.splits.values() for name, stream in split.streams.items()}
    for split_name, split in asked.splits.items():
        if split_name not in stored.splits and set(split.streams) != set(streams):
            yield (
                f"splits.{split_name}: streams {', '.join(sorted(streams))} in the store, "
                f"{', '.join(sorted(split.streams))} asked for"
            )
        for name, stream in split.streams.items():
            known = streams.get(name)
            if known is None:
                continue
            added = sorted(set(stream.taps) - set(known.taps))
            if known.calibration is not None and added:
                yield (
                    f"splits.{split_name}.{name}.taps: {', '.join(f'h{tap:02d}' for tap in added)} asked for beside "
                    "those of the store, which is calibrated for its own taps only"
                )
            if split_name not in stored.splits and not (
                same_widths(stream, known) and stream.calibration == known.calibration
            ):
                yield f"splits.{split_name}.{name}: rows of {known.width} in the store, of {stream.width} asked for"


def environment_changes(stored: Plan, asked: Plan) -> list[str]:
    """One line for each thing of the environment that changed; the last bits of values may differ with it."""
    here, there = stored.environment, asked.environment
    return [
        f"{name}: {here.get(name, 'not known')} when the store was begun, {there.get(name, 'not known')} now"
        for name in sorted(set(here) | set(there))
        if here.get(name) != there.get(name)
    ]


def _fields(plan: Plan, files: Mapping[str, FileRecord]) -> Iterator[tuple[_Field, Any]]:
    """What is compared of a plan: all that decides, and nothing that follows from it alone."""
    yield _Field("format"), plan.format
    yield _Field("encoding"), plan.encoding
    for name, value in plan.identity.items():
        yield _Field("identity", name), value
    for path, record in files.items():
        for field in _RECORD_FIELDS:
            yield _Field(f"files.{field}", path), getattr(record, field)
    for name, split in plan.splits.items():
        for field in ("examples", "groups", "groups_per_unit", "order_key"):
            yield _Field(f"splits.{field}", split=name), getattr(split, field)
        yield _Field("splits.group_examples", split=name), keys.digest(list(split.group_examples))
        for number, part in enumerate(split.parts, 2):
            for field in ("first_group", "examples", "order_key"):
                yield _Field(f"splits.parts.{field}", split=name, part=number), getattr(part, field)
            for stream_name, key in part.content_keys.items():
                yield _Field("splits.parts.content_keys", split=name, part=number, stream=stream_name), key
        for stream_name, stream in split.streams.items():
            for field in ("width", "chunk_rows", "content_key"):
                yield _Field(f"splits.streams.{field}", split=name, stream=stream_name), getattr(stream, field)
            yield _Field("splits.streams.taps", split=name, stream=stream_name), list(stream.taps)
            if stream.widths is not None:
                yield _Field("splits.streams.widths", split=name, stream=stream_name), list(stream.widths)
            for field in ("file", "outliers"):
                value = None if stream.calibration is None else getattr(stream.calibration, field)
                yield _Field(f"splits.streams.calibration.{field}", split=name, stream=stream_name), value


def _told(value: Any) -> str:
    return "nothing" if value is _ABSENT else shown(value)
