"""How a store differs from one that is asked for, field by field."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from .documents import FileRecord, Plan
from .keys import shown

_ABSENT: Final = object()


def differences(stored: Plan, asked: Plan, files: Mapping[str, FileRecord]) -> list[str]:
    """One line for each field in which a store and a request differ; empty when they are the same store.

    Compared are identity, encoding, splits, packing and content of every stream, and the blobs. Producer
    notes and environment are not.
    """
    here = dict(_fields(stored, stored.files))
    there = dict(_fields(asked, files))
    lines = []
    for name in sorted(set(here) | set(there)):
        one, other = here.get(name, _ABSENT), there.get(name, _ABSENT)
        if type(one) is not type(other) or one != other:
            lines.append(f"{name}: {_told(one)} in the store, {_told(other)} asked for")
    return lines


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
