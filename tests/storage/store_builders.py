"""Small stores with known values, for the tests of storage; also run as a script by the kill tests."""

import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sherl_cache.storage import (
    Calibration,
    Manifest,
    PackedSplit,
    Plan,
    Ragged,
    Store,
    StoreWriter,
    Unit,
    calibrate,
    claim_units,
    encoding,
    placement_columns,
    plan_split,
    write_examples,
)
from sherl_cache.storage.ragged import spans

FILES = {"weights/late.00.safetensors": b"late weights", "weights/head.safetensors": bytes(range(256)) * 9}


@dataclass
class Case:
    """What a store shall hold."""

    encoding: str = "float32"
    examples: dict[str, int] = field(default_factory=lambda: {"train": 60, "validation": 17})
    taps: dict[str, Sequence[int]] = field(default_factory=lambda: {"encoder": (0, 2, 3), "decoder": (1,)})
    widths: dict[str, Any] = field(default_factory=lambda: {"encoder": 8, "decoder": 4})
    seed: int = 0
    chunk_bytes: tuple[int, int] = (1024, 4096)
    unit_memory: int = 16384
    identity: dict[str, str | int | float | bool | None] = field(default_factory=lambda: {"model.weights": "abc"})
    environment: dict[str, str] = field(default_factory=lambda: {"numpy": np.__version__})

    def lengths(self, split: str) -> dict[str, Ragged]:
        """Lengths in source order."""
        rng = np.random.default_rng(zlib.crc32(split.encode()))
        count = self.examples[split]
        found = {}
        for stream in self.taps:
            segments = np.ones(count, np.int32) if stream == "encoder" else rng.integers(1, 4, count, np.int32)
            longest = 12 if stream == "encoder" else 4
            found[stream] = Ragged(rng.integers(1, longest + 1, int(segments.sum()), np.int32), segments)
        return found

    def packed(self, split: str) -> PackedSplit:
        """The packing of a split."""
        return plan_split(
            self.lengths(split),
            widths=self.widths,
            itemsize=encoding(self.encoding).itemsize,
            taps=self.taps,
            seed=self.seed,
            split=split,
            chunk_bytes=self.chunk_bytes,
            unit_memory=self.unit_memory,
        )

    def plan(self) -> Plan:
        """The plan, without records of files."""
        content_keys = {stream: f"content of {stream}" for stream in self.taps}
        records = {stream: found.record(stream) for stream, found in self.calibrations().items()}
        return Plan(
            encoding=self.encoding,
            identity=self.identity,
            producer={"task": {"kind": "test"}},
            environment=self.environment,
            splits={split: self.packed(split).split_plan(content_keys, records) for split in self.examples},
        )

    def calibrations(self) -> dict[str, Calibration]:
        """By stream, what its first split says; none where values are stored as floats."""
        if not encoding(self.encoding).calibrated:
            return {}
        split = next(iter(self.examples))
        return {
            stream: calibrate({tap: self.values(split, stream, tap) for tap in taps})
            for stream, taps in self.taps.items()
        }

    def files(self) -> dict[str, bytes]:
        """Blobs by path."""
        return FILES | {found.record(stream).file: found.to_bytes() for stream, found in self.calibrations().items()}

    def tables(self) -> dict[str, Callable[[BinaryIO], None]]:
        """Writers of the example tables."""

        def writer(split: str) -> Callable[[BinaryIO], None]:
            packed = self.packed(split)
            return lambda file: write_examples(file, self.batches(packed), packed.unit_examples, packed.streams)

        return {split: writer(split) for split in self.examples}

    def batches(self, packed: PackedSplit, size: int = 7) -> Iterator[pa.RecordBatch]:
        """Examples in written order, some at a time."""
        for first in range(0, len(packed.order), size):
            ids = packed.order[first : first + size]
            count = len(ids)
            segments = packed.lengths["decoder"].counts if "decoder" in self.taps else np.ones(len(packed.order))
            yield pa.RecordBatch.from_pydict(
                {
                    "source_id": [f"{packed.split}/{i}" for i in ids],
                    "group_id": pa.nulls(count, pa.string()),
                    "view": pa.array([0] * count, pa.int16()),
                    "task": ["test"] * count,
                    "content_hash": [f"{i:08x}" for i in ids],
                    "label": [None if i % 5 == 0 else float(i) for i in ids],
                    "gold": pa.array(
                        [-1 if i % 7 == 0 else int(i % segments[first + n]) for n, i in enumerate(ids)],
                        pa.int32(),
                    ),
                    "input_ids": [[int(i), 1] for i in ids],
                    "token_type_ids": pa.nulls(count, pa.list_(pa.int8())),
                    "target_ids": pa.nulls(count, pa.list_(pa.list_(pa.int32()))),
                    **placement_columns(packed, first, count),
                }
            )

    def values(self, split: str, stream: str, tap: int) -> NDArray[np.float32]:
        """Values of every segment, one after another in written order: [tokens, width]."""
        tokens = self.packed(split).streams[stream].tokens
        rng = np.random.default_rng(zlib.crc32(f"{split}/{stream}/{tap}".encode()))
        width = self.widths[stream]
        return rng.standard_normal((tokens, width if isinstance(width, int) else width[tap]), dtype=np.float32)

    def rows(self, split: str, stream: str) -> NDArray[np.int64]:
        """Physical row of each of those values: [tokens]."""
        packed = self.packed(split).streams[stream]
        return spans(packed.offsets, packed.lengths.values)

    def create(self, root: Path) -> StoreWriter:
        """Begin the store, or go on with it."""
        return StoreWriter.create(root, self.plan(), self.files(), self.tables())

    def fill(self, writer: StoreWriter, unit: Unit) -> None:
        """Write one unit."""
        buffer = writer.buffer(unit)
        for stream, taps in self.taps.items():
            rows = self.rows(unit.split, stream)
            height = writer.plan.splits[unit.split].streams[stream].chunk_rows
            first, stop = unit.first_group * height, (unit.first_group + unit.groups) * height
            mine = (rows >= first) & (rows < stop)
            for tap in taps:
                buffer.put(stream, tap, rows[mine], self.values(unit.split, stream, tap)[mine])
        writer.write(unit, buffer)

    def build(self, root: Path) -> Store:
        """The finished store."""
        writer = self.create(root)
        for unit in writer.missing():
            self.fill(writer, unit)
        writer.finalize()
        return Store.open(root)

    def work(
        self, root: Path, lease_seconds: float = 60.0, done: Callable[[Unit], None] = lambda unit: None
    ) -> Manifest:
        """Do as one of many writers; `done` is told each unit that was computed here."""
        writer = self.create(root)
        with claim_units(writer, lease_seconds=lease_seconds) as units:
            for unit in units:
                done(unit)
                self.fill(writer, unit)
        return writer.finalize()


FORTY_UNITS = Case(examples={"train": 500}, chunk_bytes=(1024, 1024), unit_memory=1, encoding="bfloat16")


if __name__ == "__main__":
    case = replace(FORTY_UNITS, examples={"train": int(sys.argv[2])})
    if len(sys.argv) > 3:  # one of many writers: says each unit that it computes
        case.work(Path(sys.argv[1]), float(sys.argv[3]), done=lambda unit: print(unit.name, flush=True))
    else:
        case.build(Path(sys.argv[1]))
