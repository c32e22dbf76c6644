"""How a store differs from one that is asked for, field by field."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from .documents import FileRecord, Plan
from .growth import DATA_FIELD, TAPS_FIELD, extends_split
from .keys import shown

_ABSENT: Final = object()

Class = Literal["numbers", "layout", "recorded"]
"""What a field means for a store: other numbers or other examples; the same numbers in other places or another order;
or nothing, it is noted only.
"""
PLAN_CLASSES: Final[Mapping[str, Class]] = MappingProxyType(
    {
        "format": "numbers",
        "features": "recorded",  # follows from the encoding
        "encoding": "numbers",
        "identity": "numbers",
        "producer": "recorded",
        "environment": "recorded",
        "files": "numbers",
        "metadata": "recorded",  # follows from the rest
        "extends": "recorded",
        "splits.examples": "numbers",
        "splits.groups": "layout",
        "splits.group_examples": "layout",
        "splits.groups_per_unit": "layout",
        "splits.order_key": "layout",
        "splits.table": "recorded",  # follows from the data and the order
        "splits.parts": "layout",
        "splits.streams.width": "numbers",
        "splits.streams.taps": "numbers",
        "splits.streams.chunk_rows": "layout",
        "splits.streams.tokens": "recorded",  # follow from the data
        "splits.streams.segments": "recorded",
        "splits.streams.longest": "recorded",
        "splits.streams.content_key": "numbers",
        "splits.streams.calibration": "numbers",
    }
)
"""Every field of a plan; of splits and streams by the field's own name."""


@dataclass(frozen=True)
class Compared:
    """One field of a store and of a request. refused: it differs in a way that another store is needed for."""

    field: str
    stored: str
    asked: str
    meaning: Class
    differs: bool
    refused: bool


def compare(stored: Plan, asked: Plan, files: Mapping[str, FileRecord]) -> list[Compared]:
    """Every field of a store beside that of a request, those that decide first."""
    here, there = dict(_fields(stored, stored.files)), dict(_fields(asked, files))
    found = []
    for name in sorted(set(here) | set(there)):
        one, other = here.get(name, _ABSENT), there.get(name, _ABSENT)
        differs = type(one) is not type(other) or one != other
        refused = differs and not _may_differ(name, stored, asked)
        found.append(Compared(name, _told(one), _told(other), class_of(name), differs, refused))
    notes = (("environment", stored.environment, asked.environment), ("producer", stored.producer, asked.producer))
    for group, left, right in notes:
        for name in sorted(set(left) | set(right)):
            one, other = left.get(name, _ABSENT), right.get(name, _ABSENT)
            found.append(Compared(f"{group}.{name}", _told(one), _told(other), "recorded", one != other, False))
    return found


def class_of(name: str) -> Class:
    """The class of a field as `differences` names it; identity fields go by their own names."""
    head, *rest = name.split(".")
    if head == "splits" and rest:
        within = "splits.streams." if len(rest) > 2 else "splits."
        return PLAN_CLASSES[within + rest[-1]]
    return PLAN_CLASSES.get(head, PLAN_CLASSES["identity"])


def differences(stored: Plan, asked: Plan, files: Mapping[str, FileRecord]) -> list[str]:
    """One line for each field in which a store and a request differ; empty when they are the same store.

    Compared are identity, encoding, splits, packing and content of every stream, and the blobs. Producer
    notes and environment are not. It is the same store, too, where one of both holds fewer taps of a stream, fewer
    splits, or a split without the parts that the other has added (the request never has fewer parts).
    """
    here = dict(_fields(stored, stored.files))
    there = dict(_fields(asked, files))
    lines = []
    for name in sorted(set(here) | set(there)):
        one, other = here.get(name, _ABSENT), there.get(name, _ABSENT)
        if (type(one) is not type(other) or one != other) and not _may_differ(name, stored, asked):
            lines.append(f"{name}: {_told(one)} in the store, {_told(other)} asked for")
    return lines + list(_misfits(stored, asked))


def _may_differ(name: str, stored: Plan, asked: Plan) -> bool:
    """Whether growing, or asking for less, explains that a field differs."""
    if name.startswith(TAPS_FIELD):
        return True  # the taps of each stream of each split are fields of their own
    split = name.removeprefix(DATA_FIELD) if name.startswith(DATA_FIELD) else name.split(".")[1:2]
    split = split if isinstance(split, str) else "".join(split)
    here, there = stored.splits.get(split), asked.splits.get(split)
    if name.startswith("splits.") and (here is None or there is None):
        return True
    if name.startswith(DATA_FIELD):
        if here is None or there is None:
            return here is not there
        return len(there.parts) > len(here.parts) and extends_split(here, there)
    *_, field = name.split(".")
    if name.startswith("splits.") and here is not None and there is not None:
        if field in ("examples", "order_key"):
            return extends_split(here, there)
        stream = name.split(".")[2]
        if stream in here.streams and stream not in there.streams:
            return True
        return field == "taps" and stream in here.streams and stream in there.streams
    return False


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
            if split_name not in stored.splits and (stream.width, stream.calibration) != (
                known.width,
                known.calibration,
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


def _fields(plan: Plan, files: Mapping[str, FileRecord]) -> Iterator[tuple[str, Any]]:
    yield from plan.identity.items()
    yield "encoding", plan.encoding
    for split_name, split in plan.splits.items():
        place = f"splits.{split_name}"
        yield f"{place}.examples", split.examples
        yield f"{place}.order_key", split.order_key
        yield f"{place}.groups_per_unit", split.groups_per_unit
        for stream_name, stream in split.streams.items():
            inner = f"{place}.{stream_name}"
            yield f"{inner}.taps", list(stream.taps)
            yield f"{inner}.width", stream.width
            yield f"{inner}.chunk_rows", stream.chunk_rows
            yield f"{inner}.content_key", stream.content_key
            yield f"{inner}.calibration", None if stream.calibration is None else stream.calibration.file
    for path, record in files.items():
        yield f"files.{path}", record.sha256


def _told(value: Any) -> str:
    return "nothing" if value is _ABSENT else shown(value)
