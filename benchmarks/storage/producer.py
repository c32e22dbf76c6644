"""A producer of activations without a model: numpy makes every value from its place, so any writer makes the same."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sherl_cache.storage import (
    PackedSplit,
    Plan,
    Ragged,
    StoreWriter,
    Unit,
    claim_units,
    encoding,
    plan_split,
)

from .examples import table_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Producer:
    """A store of one split and one stream, with sentence lengths between 1 and 60 tokens."""

    examples: int
    taps: int = 3
    width: int = 32
    units: int = 48
    """About how many units."""
    seconds: float = 0.0
    """What computing one unit takes beside making its values."""
    seed: int = 0

    @cached_property
    def packed(self) -> PackedSplit:
        """The packing."""
        rng = np.random.default_rng(self.seed)
        lengths = np.minimum(rng.geometric(1 / 12, self.examples), 60).astype(np.int32)
        itemsize = encoding("bfloat16").itemsize
        rows = int(lengths.sum()) // self.units // 4
        chunk = max(rows, 64) * self.width * itemsize
        return plan_split(
            {"encoder": Ragged(lengths, np.ones(self.examples, np.int32))},
            widths={"encoder": self.width},
            itemsize=itemsize,
            taps={"encoder": tuple(range(self.taps))},
            chunk_bytes=(chunk // 2, chunk),
            unit_memory=int(lengths.sum()) * self.width * itemsize * self.taps // self.units,
        )

    @cached_property
    def plan(self) -> Plan:
        """The plan, without records of files."""
        return Plan(
            encoding="bfloat16",
            identity={"producer": "numpy", "seed": self.seed},
            producer={},
            environment={},
            splits={"train": self.packed.split_plan({"encoder": "numpy"})},
        )

    def create(self, root: Path) -> StoreWriter:
        """Begin the store, or go on with it."""
        return StoreWriter.create(root, self.plan, {}, {"train": table_of(self.packed)})

    def write(self, writer: StoreWriter, unit: Unit) -> None:
        """Compute one unit and commit it."""
        buffer = writer.buffer(unit)
        columns = writer.table("train").read_unit(unit.index, ["encoder_offset", "encoder_length"]).to_pydict()
        pairs = zip(columns["encoder_offset"], columns["encoder_length"], strict=True)
        rows = np.concatenate([np.arange(start[0], start[0] + count[0]) for start, count in pairs])
        for tap in range(self.taps):
            buffer.put("encoder", tap, rows, self.values(tap, rows))
        time.sleep(self.seconds)
        writer.write(unit, buffer)

    def values(self, tap: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Values of some physical rows: [rows, width]."""
        places = rows[:, None] * self.width + np.arange(self.width)
        values: NDArray[np.float32] = np.sin(places * (tap + 1), dtype=np.float64).astype(np.float32)
        return values

    def build(self, root: Path) -> str:
        """Digest of the store that one writer makes."""
        writer = self.create(root)
        for unit in writer.missing():
            self.write(writer, unit)
        return writer.finalize().digest

    def work(self, root: Path, log: Path, lease_seconds: float) -> None:
        """As one of many writers; each unit that is begun is a line of `log`."""
        writer = self.create(root)
        with claim_units(writer, lease_seconds=lease_seconds) as units:
            for unit in units:
                note(log, unit)
                self.write(writer, unit)
        writer.finalize()

    def submit(self, root: Path, units: list[Unit], log: Path) -> None:
        """Compute and commit the given units, whoever else does."""
        writer = self.create(root)
        for unit in units:
            note(log, unit)
            self.write(writer, unit)


def note(log: Path, unit: Unit) -> None:
    """One line for a unit that is begun; whole lines, whoever else writes."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{unit.name}\n".encode())
    os.close(descriptor)


def noted(log: Path) -> list[str]:
    """Units that were begun, in order."""
    return log.read_text("ascii").split() if log.exists() else []


def receipts(root: Path) -> int:
    """Units committed so far."""
    folder = root / "sherl" / "receipts"
    return sum(name.endswith(".json") and name[0] != "." for name in os.listdir(folder)) if folder.is_dir() else 0
