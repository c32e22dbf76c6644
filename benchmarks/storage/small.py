"""A store of a few kilobytes that can grow, with values that depend on the example alone: what is written again and again
by the topics about faults, and by the tests of growth.
"""

from __future__ import annotations

import functools
import io
import zlib
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from sherl_cache.storage import (
    Calibration,
    Finding,
    PackedSplit,
    Plan,
    Ragged,
    Repair,
    SplitPlan,
    Store,
    StoreWriter,
    Unit,
    UnitBuffer,
    calibrate,
    encoding,
    pack_part,
    plan_split,
    repair_store,
    with_part,
)
from sherl_cache.storage.keys import digest
from sherl_cache.storage.widths import Width, width_by_tap, width_fields

from .examples import table_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

STREAM = "encoder"
BLOBS = {"weights/late.00.safetensors": bytes(range(256)) * 4}
_DRAWN = 2000
_SEGMENTS = {"encoder": 1, "decoder": 3}
_LONGEST = {"encoder": 12, "decoder": 4}


@dataclass(frozen=True)
class Small:
    """What a small store holds: by split the examples of its parts, by stream the taps; values drawn from `seed`.

    sized_for: the taps that units are sized for, where they are not those asked for: a store that grows by taps keeps
    its units.
    """

    parts: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"train": (14,), "validation": (4,)})
    taps: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {STREAM: (0, 2)})
    widths: Mapping[str, Width] = field(default_factory=lambda: {STREAM: 4})
    sized_for: Mapping[str, tuple[int, ...]] | None = None
    encoding: str = "float32"
    chunk_bytes: tuple[int, int] = (256, 256)
    unit_memory: int = 2048
    seed: int = 0

    def plan(self) -> Plan:
        """The plan, without records of files."""
        return Plan(
            encoding=self.encoding,
            identity={
                "model.weights": f"seed {self.seed}",
                **{f"taps.{stream}": ",".join(map(str, taps)) for stream, taps in self.taps.items()},
                **{f"data.{split}": digest([split, sum(sizes)]) for split, sizes in self.parts.items()},
            },
            producer={"task": {"kind": "small"}},
            environment={"numpy": np.__version__},
            splits={split: plan for split, (plan, _) in self._packed.items()},
        )

    def files(self) -> dict[str, bytes]:
        """Blobs by path."""
        found = self._calibrations
        return BLOBS | {calibration.record(name).file: calibration.to_bytes() for name, calibration in found.items()}

    def tables(self) -> dict[str, Callable[[BinaryIO], None]]:
        """Writers of the example tables."""
        return {name: functools.partial(_copy, data) for name, data in self._table_bytes.items()}

    def create(self, root: Path) -> StoreWriter:
        """Begin the store, go on with it, or let it grow."""
        return StoreWriter.create(root, self.plan(), self.files(), self.tables())

    def buffer(self, writer: StoreWriter, unit: Unit, taps: Mapping[str, tuple[int, ...]] | None = None) -> UnitBuffer:
        """A unit with the values of what it lacks, or of `taps`."""
        buffer = writer.buffer(unit, taps)
        for stream, tap in buffer.arrays:
            buffer.put(stream, tap, *self._rows(writer, unit, stream, tap))
        return buffer

    def fill(self, writer: StoreWriter, unit: Unit) -> None:
        """Commit one unit."""
        writer.write(unit, self.buffer(writer, unit))

    def build(self, root: Path) -> Store:
        """The finished store, whatever of it was there."""
        writer = self.create(root)
        for unit in writer.missing():
            self.fill(writer, unit)
        writer.finalize()
        return Store.open(root)

    def repair(self, root: Path, findings: Iterable[Finding]) -> Repair:
        """Make again what `verify --deep` found damaged."""

        def make(unit: Unit) -> UnitBuffer:
            return self.buffer(StoreWriter.open(root), unit, self.taps)

        return repair_store(root, findings, make, files=self.files(), tables=self.tables(), plan=self.plan())

    def lengths(self, split: str, first: int, stop: int) -> dict[str, Ragged]:
        """Lengths of source examples `first` to `stop`: the same whatever else is asked for."""
        found = {}
        for stream in self.widths:
            rng = np.random.default_rng(zlib.crc32(f"{split}/{stream}".encode()))
            counts = rng.integers(1, _SEGMENTS[stream] + 1, max(stop, _DRAWN))
            ends = np.concatenate([[0], np.cumsum(counts)])
            tokens = rng.integers(1, _LONGEST[stream] + 1, int(ends[-1]))
            found[stream] = Ragged(tokens[ends[first] : ends[stop]], counts[first:stop])
        return found

    def values(self, source: str, stream: str, tap: int, rows: int) -> NDArray[np.float32]:
        """Values of one example in one tap: [rows, width]."""
        rng = np.random.default_rng(zlib.crc32(f"{self.seed}/{source}/{stream}/{tap}".encode()))
        width = width_by_tap(self.widths[stream], (tap,))[tap]
        return rng.standard_normal((rows, width), dtype=np.float32)

    def _rows(
        self, writer: StoreWriter, unit: Unit, stream: str, tap: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Physical rows of a unit, as the table in the store places them, and their values."""
        key = writer.plan.splits[unit.split].order_key, unit.name, stream, tap
        if key not in self._known:
            columns = writer.table(unit.split).read_unit(unit.index).to_pydict()
            placed = {
                source: np.concatenate(
                    [np.arange(o, o + n) for o, n in zip(offsets, lengths, strict=True)] or [np.empty(0, np.int64)]
                )
                for source, offsets, lengths in zip(
                    columns["source_id"], columns[f"{stream}_offset"], columns[f"{stream}_length"], strict=True
                )
            }
            values = [self.values(source, stream, tap, len(rows)) for source, rows in placed.items()]
            self._known[key] = np.concatenate(list(placed.values())), np.concatenate(values)
        return self._known[key]

    @functools.cached_property
    def _known(self) -> dict[tuple[str, str, str, int], tuple[NDArray[np.int64], NDArray[np.float32]]]:
        return {}

    @functools.cached_property
    def _packed(self) -> dict[str, tuple[SplitPlan, list[PackedSplit]]]:
        """By split its plan, which depends on no tap that is asked for but by naming it, and its parts."""
        return {split: self._pack(split) for split in self.parts}

    def _pack(self, split: str) -> tuple[SplitPlan, list[PackedSplit]]:
        first, *later = self.parts[split]
        ends = list(accumulate(self.parts[split]))
        packed = plan_split(
            self.lengths(split, 0, first),
            widths=self.widths,
            itemsize=encoding(self.encoding).itemsize,
            taps=self.sized_for or self.taps,
            split=split,
            chunk_bytes=self.chunk_bytes,
            unit_memory=self.unit_memory,
        )
        records = {stream: found.record(stream) for stream, found in self._calibrations.items()}
        plan, parts = packed.split_plan({stream: stream for stream in self.widths}, records), [packed]
        for size, end in zip(later, ends[1:], strict=True):
            part = pack_part(plan, self.lengths(split, end - size, end), split=split, first_source=end - size)
            plan = with_part(plan, part, {stream: f"{stream} to {end}" for stream in self.widths})
            parts.append(part)
        streams = {
            name: stream.model_copy(update=width_fields(width_by_tap(self.widths[name], self.taps[name])))
            for name, stream in plan.streams.items()
            if name in self.taps
        }
        return plan.model_copy(update={"streams": streams}), parts

    @functools.cached_property
    def _calibrations(self) -> dict[str, Calibration]:
        """By stream, what the first part of the first split says; none where values are stored as floats."""
        if not encoding(self.encoding).calibrated:
            return {}
        split, (examples, *_) = next(iter(self.parts.items()))
        found = {}
        for stream, lengths in self.lengths(split, 0, examples).items():
            rows = lengths.totals().tolist()
            found[stream] = calibrate(
                {
                    tap: np.concatenate([self.values(f"{split}/{n}", stream, tap, rows[n]) for n in range(examples)])
                    for tap in self.taps[stream]
                }
            )
        return found

    @functools.cached_property
    def _table_bytes(self) -> dict[str, bytes]:
        found = {}
        for split, (_, parts) in self._packed.items():
            for number, packed in enumerate(parts, 1):
                file = io.BytesIO()
                table_of(packed)(file)
                found[split if number == 1 else f"{split}.{number}"] = file.getvalue()
        return found


def _copy(data: bytes, file: BinaryIO) -> None:
    file.write(data)


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
