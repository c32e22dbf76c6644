"""Growing a store: more examples in a split, another split, more taps; what is there stays as it is.

A store grows by a plan that extends the one before: every split, row group, offset and key of the older plan is in
the newer one, unchanged. Added examples form a part of their split: it begins at the next unit, has a seeded order
and an example table of its own, and row groups between are gaps. Identity fields under `taps.` and `data.` say what a
store holds and may change with that; every other field must stay.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from . import keys
from .documents import FileRecord, PartPlan, Plan, SplitPlan, StreamPlan
from .errors import DataError, InvalidInput, StoreStale
from .layout import PackedSplit, PackedStream, numbers_digest, pack, segment_offsets
from .order import permutation
from .ragged import LengthsByStream, cumulative
from .widths import width_fields

TAPS_FIELD: Final = "taps."
DATA_FIELD: Final = "data."


def pack_part(
    stored: SplitPlan, lengths: LengthsByStream, *, split: str, first_source: int, seed: int = 0, source_key: str = ""
) -> PackedSplit:
    """Pack examples that are added to a stored split, whose lengths are given by stream, in source order.

    first_source: number of the first of them in the source; `order` of the result counts from there. Chunk heights and
    units are those of the split. Raises StoreStale where an example does not fit a chunk, DataError without examples.
    """
    if set(lengths) != set(stored.streams):
        raise InvalidInput(f"split {split!r}: lengths of {sorted(lengths)} are given, it has {sorted(stored.streams)}")
    examples = len(next(iter(lengths.values())).counts)
    if not examples:
        raise DataError(f"split {split!r}: there are no examples to add")
    number = len(stored.parts) + 2
    order = permutation(examples, "written order", split, seed, number)
    written = {name: ragged.take(order).narrow() for name, ragged in lengths.items()}
    rows = {name: cumulative(ragged.totals()) for name, ragged in written.items()}
    heights = {name: stream.chunk_rows for name, stream in stored.streams.items()}
    for name, sums in rows.items():
        if (longest := int(np.diff(sums).max())) > heights[name]:
            raise StoreStale(
                f"split {split!r}: an example to add has {longest} rows of {name}, a chunk of the store holds "
                f"{heights[name]}: it cannot be added; extract a store of its own in another folder"
            )
    firsts = pack(rows, heights)
    first_group = _next_unit(stored)
    streams = {
        name: PackedStream(
            widths=stream.tap_widths,
            chunk_rows=stream.chunk_rows,
            lengths=written[name],
            offsets=segment_offsets(written[name], firsts, stream.chunk_rows) + first_group * stream.chunk_rows,
            fill_rows=(len(firsts) - 1) * stream.chunk_rows - int(rows[name][-1]),
        )
        for name, stream in stored.streams.items()
    }
    group_examples = np.diff(firsts)
    order_key = keys.digest(
        {
            "split": split,
            "part": number,
            "seed": seed,
            "source": source_key,
            "order": numbers_digest(order),
            "groups": numbers_digest(group_examples),
            "lengths": {
                name: [numbers_digest(ragged.values), numbers_digest(ragged.counts)] for name, ragged in written.items()
            },
        }
    )
    return PackedSplit(split, order + first_source, group_examples, stored.groups_per_unit, order_key, streams)


def with_part(stored: SplitPlan, part: PackedSplit, content_keys: Mapping[str, str]) -> SplitPlan:
    """The plan of a split with a packed part added to it; the part's table comes later."""
    first_group = _next_unit(stored)
    gaps = (0,) * (first_group - stored.groups)
    streams = {
        name: stream.model_copy(
            update={
                "tokens": stream.tokens + part.streams[name].tokens,
                "segments": stream.segments + len(part.streams[name].lengths.values),
                "longest": max(stream.longest, int(part.streams[name].lengths.values.max(initial=0))),
            }
        )
        for name, stream in stored.streams.items()
    }
    added = PartPlan(
        first_group=first_group,
        examples=len(part.order),
        order_key=part.order_key,
        content_keys={name: content_keys[name] for name in streams},
    )
    return SplitPlan(
        examples=stored.examples + len(part.order),
        groups=first_group + len(part.group_examples),
        groups_per_unit=stored.groups_per_unit,
        group_examples=(*stored.group_examples, *gaps, *part.group_examples.tolist()),
        order_key=keys.digest([stored.order_key, part.order_key]),
        table=stored.table,
        streams=streams,
        parts=(*stored.parts, added),
    )


def grown(stored: Plan, asked: Plan, extends: str) -> Plan | None:
    """The plan that extends `stored` by what `asked` holds beside it; None where `asked` holds nothing new.

    Both are the same store as `stale.differences` judges. extends: digest of the stored plan. Records of new tables and
    of zarr metadata come later.
    """
    taps = _all_taps(stored, asked)
    splits = {
        name: _joined(stored.splits.get(name), asked.splits.get(name)) for name in (*stored.splits, *asked.splits)
    }
    splits = {name: _tapped(split, taps) for name, split in splits.items()}
    if splits == stored.splits:
        return None
    whole = set(asked.splits) >= set(stored.splits)
    identity = dict(stored.identity)
    for name, value in asked.identity.items():
        stream, split = name.removeprefix(TAPS_FIELD), name.removeprefix(DATA_FIELD)
        wider = name.startswith(TAPS_FIELD) and set(taps.get(stream, ())) == set(_taps(asked).get(stream, ()))
        longer = name.startswith(DATA_FIELD) and _brings(stored.splits.get(split), asked.splits.get(split))
        if wider or longer:
            identity[name] = value
    return stored.model_copy(
        update={
            "identity": identity,
            "producer": asked.producer if whole else stored.producer,
            "environment": asked.environment,
            "splits": splits,
            "metadata": {},
            "extends": extends,
        }
    )


def shrunk(older: Plan, newer: Plan) -> list[str]:
    """What of an older plan is not, or not as it was, in one that is said to extend it; empty where all is."""
    lost = [] if older.encoding == newer.encoding else ["encoding"]
    lost += [] if set(older.features) <= set(newer.features) else ["features"]
    lost += [f"files.{path}" for path, record in older.files.items() if newer.files.get(path) != record]
    lost += [
        f"identity.{name}"
        for name in sorted({*older.identity, *newer.identity})
        if not name.startswith((TAPS_FIELD, DATA_FIELD)) and older.identity.get(name) != newer.identity.get(name)
    ]
    for name, split in older.splits.items():
        found = newer.splits.get(name)
        if found is None:
            lost.append(f"splits.{name}")
        else:
            lost += [f"splits.{name}.{field}" for field in _shrunk_split(split, found)]
    return lost


def extends_split(stored: SplitPlan, asked: SplitPlan) -> bool:
    """Whether `asked` is the stored split, perhaps with parts added; taps and tables are not looked at."""
    kept = asked.parts[: len(stored.parts)]
    same_parts = [part.order_key for part in kept] == [part.order_key for part in stored.parts]
    if not same_parts or asked.groups_per_unit != stored.groups_per_unit:
        return False
    if asked.group_examples[: stored.groups] != stored.group_examples:
        return False
    order_key = stored.order_key
    for part in asked.parts[len(stored.parts) :]:
        order_key = keys.digest([order_key, part.order_key])
    return order_key == asked.order_key


def _shrunk_split(older: SplitPlan, newer: SplitPlan) -> list[str]:
    lost = [] if extends_split(older, newer) else ["row groups"]
    if older.table != newer.table or newer.parts[: len(older.parts)] != older.parts:
        lost.append("tables")
    if set(older.streams) != set(newer.streams):
        return [*lost, "streams"]
    for name, stream in older.streams.items():
        other = newer.streams[name]
        if not set(stream.taps) <= set(other.taps):
            lost.append(f"{name}.taps")
        if not same_widths(stream, other):
            lost.append(f"{name}.width")
        lost += [
            f"{name}.{field}"
            for field in ("chunk_rows", "content_key", "calibration")
            if getattr(stream, field) != getattr(other, field)
        ]
    return lost


def _next_unit(stored: SplitPlan) -> int:
    """The first row group of the unit behind the last one."""
    return -(-stored.groups // stored.groups_per_unit) * stored.groups_per_unit


def same_widths(stream: StreamPlan, other: StreamPlan) -> bool:
    """Whether the taps that both have are as wide in both."""
    here, there = stream.tap_widths, other.tap_widths
    return all(here[tap] == there[tap] for tap in here.keys() & there.keys())


def _taps(plan: Plan) -> dict[str, dict[int, int]]:
    """Width of every tap of each stream."""
    found: dict[str, dict[int, int]] = {}
    for split in plan.splits.values():
        for name, stream in split.streams.items():
            found.setdefault(name, {}).update(stream.tap_widths)
    return found


def _all_taps(stored: Plan, asked: Plan) -> dict[str, dict[int, int]]:
    """Every tap of each stored stream that either plan has, with its width: all splits of a store hold the same taps."""
    here, there = _taps(stored), _taps(asked)
    return {name: {**there.get(name, {}), **taps} for name, taps in here.items()}


def _brings(stored: SplitPlan | None, asked: SplitPlan | None) -> bool:
    """Whether a split is new, or has parts that the stored one lacks."""
    return asked is not None and (stored is None or len(asked.parts) > len(stored.parts))


def _joined(stored: SplitPlan | None, asked: SplitPlan | None) -> SplitPlan:
    """A split with what the store has of it, and what was asked for beside that."""
    if stored is None or asked is None:
        found = stored or asked
        assert found is not None
        return found
    if not _brings(stored, asked):
        return stored
    new = asked.parts[len(stored.parts) :]
    return asked.model_copy(
        update={
            "table": stored.table,
            "parts": (*stored.parts, *new),
            "streams": {
                name: stream.model_copy(
                    update={
                        field: getattr(asked.streams[name], field) if name in asked.streams else getattr(stream, field)
                        for field in ("tokens", "segments", "longest")
                    }
                )
                for name, stream in stored.streams.items()
            },
        }
    )


def _tapped(split: SplitPlan, taps: Mapping[str, Mapping[int, int]]) -> SplitPlan:
    changed: dict[str, StreamPlan] = {
        name: stream.model_copy(update=width_fields(taps[name])) if name in taps else stream
        for name, stream in split.streams.items()
    }
    return split.model_copy(update={"streams": changed})


def with_tables(plan: Plan, records: Mapping[str, FileRecord]) -> Plan:
    """A plan whose example tables that lack a record have those given by table name."""
    splits: dict[str, Any] = {}
    for name, split in plan.splits.items():
        first, *later = split.tables(name)
        parts = tuple(
            part.model_copy(update={"table": part.table or records.get(table.name)})
            for part, table in zip(split.parts, later, strict=True)
        )
        splits[name] = split.model_copy(update={"table": split.table or records.get(first.name), "parts": parts})
    return plan.model_copy(update={"splits": splits})
