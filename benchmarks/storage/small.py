"""A store of a few kilobytes with known values: what the topics about faults write again and again."""

from __future__ import annotations

import functools
import io
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa

from sherl_cache.storage import (
    ENCODINGS,
    Finding,
    PackedSplit,
    Plan,
    Ragged,
    Repair,
    Store,
    StoreWriter,
    Unit,
    UnitBuffer,
    placement_columns,
    plan_split,
    repair_store,
    write_examples,
)
from sherl_cache.storage.ragged import spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

STREAM = "encoder"
BLOBS = {"weights/head.safetensors": bytes(range(256)) * 4}


@dataclass(frozen=True)
class Small:
    """What a small store holds: examples by split, taps of one stream, values drawn from `seed`."""

    examples: dict[str, int] = field(default_factory=lambda: {"train": 24, "validation": 6})
    taps: tuple[int, ...] = (0, 2)
    width: int = 4
    chunk_bytes: tuple[int, int] = (256, 256)
    unit_memory: int = 2048
    seed: int = 0

    def create(self, root: Path) -> StoreWriter:
        """Begin the store, or go on with it."""
        return StoreWriter.create(root, self._plan, BLOBS, {name: self._table(name) for name in self.examples})

    def fill(self, writer: StoreWriter, unit: Unit) -> None:
        """Commit one unit."""
        writer.write(unit, self.buffer(writer, unit))

    def buffer(self, writer: StoreWriter, unit: Unit) -> UnitBuffer:
        """A unit with its values."""
        buffer = writer.buffer(unit, {STREAM: self.taps})
        height = writer.plan.splits[unit.split].streams[STREAM].chunk_rows
        rows = self._rows[unit.split]
        mine = (rows >= unit.first_group * height) & (rows < (unit.first_group + unit.groups) * height)
        for tap in self.taps:
            buffer.put(STREAM, tap, rows[mine], self._values(unit.split, tap)[mine])
        return buffer

    def repair(self, root: Path, findings: Iterable[Finding]) -> Repair:
        """Make again what `verify --deep` found damaged."""
        tables = {name: self._table(name) for name in self.examples}

        def make(unit: Unit) -> UnitBuffer:
            return self.buffer(StoreWriter.open(root), unit)

        return repair_store(root, findings, make, files=BLOBS, tables=tables, plan=self._plan)

    def build(self, root: Path) -> Store:
        """The finished store, whatever of it was there."""
        writer = self.create(root)
        for unit in writer.missing():
            self.fill(writer, unit)
        writer.finalize()
        return Store.open(root)

    @functools.cached_property
    def _packed(self) -> dict[str, PackedSplit]:
        return {name: self._pack(name, count) for name, count in self.examples.items()}

    def _pack(self, split: str, count: int) -> PackedSplit:
        rng = np.random.default_rng(zlib.crc32(split.encode()))
        lengths = Ragged(rng.integers(1, 7, count, np.int32), np.ones(count, np.int32))
        return plan_split(
            {STREAM: lengths},
            widths={STREAM: self.width},
            itemsize=ENCODINGS["float32"].itemsize,
            taps={STREAM: self.taps},
            seed=0,
            split=split,
            chunk_bytes=self.chunk_bytes,
            unit_memory=self.unit_memory,
        )

    @functools.cached_property
    def _plan(self) -> Plan:
        return Plan(
            encoding="float32",
            identity={"model.weights": f"seed {self.seed}"},
            producer={"task": {"kind": "small"}},
            environment={"numpy": np.__version__},
            splits={name: packed.split_plan({STREAM: "content"}) for name, packed in self._packed.items()},
        )

    @functools.cached_property
    def _rows(self) -> dict[str, NDArray[np.int64]]:
        streams = {name: packed.streams[STREAM] for name, packed in self._packed.items()}
        return {name: spans(stream.offsets, stream.lengths.values) for name, stream in streams.items()}

    def _values(self, split: str, tap: int) -> NDArray[np.float32]:
        if (split, tap) not in self._drawn:
            rng = np.random.default_rng(zlib.crc32(f"{self.seed}/{split}/{tap}".encode()))
            shape = len(self._rows[split]), self.width
            self._drawn[split, tap] = rng.standard_normal(shape, dtype=np.float32)
        return self._drawn[split, tap]

    @functools.cached_property
    def _drawn(self) -> dict[tuple[str, int], NDArray[np.float32]]:
        return {}

    def _table(self, split: str) -> Callable[[BinaryIO], None]:
        def write(file: BinaryIO) -> None:
            file.write(self._table_bytes[split])

        return write

    @functools.cached_property
    def _table_bytes(self) -> dict[str, bytes]:
        return {name: _table(packed) for name, packed in self._packed.items()}


def _table(packed: PackedSplit) -> bytes:
    count = len(packed.order)
    batch = pa.RecordBatch.from_pydict(
        {
            "source_id": [f"{packed.split}/{number}" for number in packed.order],
            "group_id": pa.nulls(count, pa.string()),
            "view": pa.array([0] * count, pa.int16()),
            "task": ["small"] * count,
            "content_hash": [f"{number:08x}" for number in packed.order],
            "label": [float(number) for number in packed.order],
            "gold": pa.array([0] * count, pa.int32()),
            "input_ids": [[int(number), 1] for number in packed.order],
            "token_type_ids": pa.nulls(count, pa.list_(pa.int8())),
            "target_ids": pa.nulls(count, pa.list_(pa.list_(pa.int32()))),
            **placement_columns(packed, 0, count),
        }
    )
    file = io.BytesIO()
    write_examples(file, iter([batch]), packed.unit_examples, packed.streams)
    return file.getvalue()


def contents(store: Store) -> dict[str, Any]:
    """Everything that a store serves: chunks by `tap/group`, source ids by split, blobs by path."""
    found: dict[str, Any] = {path: store.file(path) for path in store.plan.files}
    for split, plan in store.plan.splits.items():
        found[split] = store.examples(split).source_ids(0, plan.examples)
        for stream, stream_plan in plan.streams.items():
            for tap in stream_plan.taps:
                for group in store.groups(split).tolist():
                    chunk = store.chunk(split, stream, tap, group)
                    found[f"{split}/{stream}/h{tap:02d}/{group}"] = chunk.tobytes()
    return found


def differing(found: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """What a store served otherwise than it should."""
    return [name for name, value in found.items() if name not in right or right[name] != value]
