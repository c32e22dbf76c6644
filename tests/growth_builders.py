"""Small stores that grow, with values that depend on the example alone; also run as a script by the kill tests.

python growth_builders.py <root> <step>      build as STEPS[step] says
"""

import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sherl_cache.storage import (
    PackedSplit,
    Plan,
    Ragged,
    SplitPlan,
    Store,
    StoreWriter,
    Unit,
    UnitBuffer,
    decode,
    pack_part,
    placement_columns,
    plan_split,
    with_part,
    write_examples,
)
from sherl_cache.storage.keys import digest

WIDTHS = {"encoder": 8, "decoder": 4}
FILES = {"weights/late.00.safetensors": b"late weights"}
_DRAWN = 2000


@dataclass
class Growing:
    """What a store shall hold: by split the examples of its parts, by stream the taps."""

    parts: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"train": (40,)})
    taps: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"encoder": (0, 2), "decoder": (1,)})
    encoding: str = "float32"
    unit_memory: int = 16384

    def plan(self) -> Plan:
        """The plan, without records of files; the packing never depends on the taps asked for."""
        return Plan(
            encoding=self.encoding,
            identity={
                "model.weights": "abc",
                **{f"taps.{stream}": ",".join(map(str, taps)) for stream, taps in self.taps.items()},
                **{f"data.{split}": digest([split, sum(sizes)]) for split, sizes in self.parts.items()},
            },
            producer={"task": {"kind": "test"}},
            environment={"numpy": np.__version__},
            splits={split: self._packed(split)[0] for split in self.parts},
        )

    def tables(self) -> dict[str, Callable[[BinaryIO], None]]:
        """Writers of the example tables."""
        found = {}
        for split in self.parts:
            for number, packed in enumerate(self._packed(split)[1], 1):
                found[split if number == 1 else f"{split}.{number}"] = self._writer(packed)
        return found

    def create(self, root: Path) -> StoreWriter:
        """Begin the store, go on with it, or let it grow."""
        return StoreWriter.create(root, self.plan(), FILES, self.tables())

    def buffer(self, writer: StoreWriter, unit: Unit, taps: Mapping[str, tuple[int, ...]] | None = None) -> UnitBuffer:
        """A unit with its values."""
        buffer = writer.buffer(unit, taps)
        rows = writer.table(unit.split).read_unit(unit.index).to_pydict()
        for stream, tap in buffer.arrays:
            for source, offsets, lengths in zip(
                rows["source_id"], rows[f"{stream}_offset"], rows[f"{stream}_length"], strict=True
            ):
                places = np.concatenate(
                    [np.arange(o, o + n) for o, n in zip(offsets, lengths, strict=True)] or [np.empty(0, np.int64)]
                )
                buffer.put(stream, tap, places, values(source, stream, tap, len(places)))
        return buffer

    def build(self, root: Path) -> Store:
        """The finished store."""
        writer = self.create(root)
        for unit in writer.missing():
            writer.write(unit, self.buffer(writer, unit))
        writer.finalize()
        return Store.open(root)

    def _packed(self, split: str) -> tuple[SplitPlan, list[PackedSplit]]:
        first, *later = self.parts[split]
        ends = list(accumulate(self.parts[split]))
        packing_taps = {"encoder": (0, 2), "decoder": (1,)}
        packed = plan_split(
            lengths(split, 0, first),
            widths=WIDTHS,
            itemsize=4,
            taps=packing_taps,
            split=split,
            chunk_bytes=(1024, 4096),
            unit_memory=self.unit_memory,
        )
        plan, parts = packed.split_plan({"encoder": "e", "decoder": "d"}), [packed]
        for size, end in zip(later, ends[1:], strict=True):
            part = pack_part(plan, lengths(split, end - size, end), split=split, first_source=end - size)
            plan = with_part(plan, part, {"encoder": f"e{end}", "decoder": f"d{end}"})
            parts.append(part)
        streams = {
            name: stream.model_copy(update={"taps": tuple(self.taps[name])})
            for name, stream in plan.streams.items()
            if name in self.taps
        }
        return plan.model_copy(update={"streams": streams}), parts

    def _writer(self, packed: PackedSplit) -> Callable[[BinaryIO], None]:
        return lambda file: write_examples(file, _batches(packed), packed.unit_examples, packed.streams)


def lengths(split: str, first: int, stop: int) -> dict[str, Ragged]:
    """Lengths of source examples `first` to `stop`: the same whatever else is asked for."""
    rng = np.random.default_rng(zlib.crc32(split.encode()))
    ones, answers = np.ones(_DRAWN, np.int64), rng.integers(1, 4, _DRAWN)
    starts = np.concatenate([[0], np.cumsum(answers)])
    tokens = {"encoder": rng.integers(1, 13, _DRAWN), "decoder": rng.integers(1, 5, int(starts[-1]))}
    return {
        "encoder": Ragged(tokens["encoder"][first:stop], ones[first:stop]),
        "decoder": Ragged(tokens["decoder"][starts[first] : starts[stop]], answers[first:stop]),
    }


def values(source: str, stream: str, tap: int, rows: int) -> NDArray[np.float32]:
    """Values of one example in one tap."""
    rng = np.random.default_rng(zlib.crc32(f"{source}/{stream}/{tap}".encode()))
    return rng.standard_normal((rows, WIDTHS[stream]), dtype=np.float32)


def held(store: Store, split: str, stream: str, tap: int) -> dict[str, NDArray[np.float32]]:
    """What a store serves of one tap, by source id, chunk by chunk."""
    table = store.examples(split)
    lengths, offsets = table.lengths[stream], table.offsets(stream)
    starts, rows = lengths.starts(), store.stream_plan(split, stream).chunk_rows
    ids = table.column("source_id").to_pylist()
    found = {}
    for group in store.groups(split).tolist():
        chunk = decode(store.chunk(split, stream, tap, group), store.encoding)
        for example in range(*table.first_examples[group : group + 2].tolist()):
            spans = [
                chunk[offsets[s] - group * rows : offsets[s] - group * rows + lengths.values[s]]
                for s in range(starts[example], starts[example + 1])
            ]
            found[ids[example]] = np.concatenate(spans)
    return found


def check(store: Store, case: Growing) -> None:
    """Every example of every tap is served with its values, and nothing else is."""
    for split, sizes in case.parts.items():
        assert store.split(split).examples == sum(sizes) == len(store.examples(split))
        for stream, taps in case.taps.items():
            for tap in taps:
                served = held(store, split, stream, tap)
                assert set(served) == {f"{split}/{number}" for number in range(sum(sizes))}
                for source, rows in served.items():
                    assert np.array_equal(rows, values(source, stream, tap, len(rows))), (source, stream, tap)


def _batches(packed: PackedSplit, size: int = 7) -> Iterator[pa.RecordBatch]:
    for first in range(0, len(packed.order), size):
        ids = packed.order[first : first + size]
        count = len(ids)
        yield pa.RecordBatch.from_pydict(
            {
                "source_id": [f"{packed.split}/{number}" for number in ids],
                "group_id": pa.nulls(count, pa.string()),
                "view": pa.array([0] * count, pa.int16()),
                "task": ["test"] * count,
                "content_hash": [f"{number:08x}" for number in ids],
                "label": [float(number % 3) for number in ids],
                "gold": pa.array([0] * count, pa.int32()),
                "input_ids": [[int(number), 1] for number in ids],
                "token_type_ids": pa.nulls(count, pa.list_(pa.int8())),
                "target_ids": pa.nulls(count, pa.list_(pa.list_(pa.int32()))),
                **placement_columns(packed, first, count),
            }
        )


BEGUN = Growing()
LONGER = replace(BEGUN, parts={"train": (40, 25)})
WIDER = replace(BEGUN, parts={"train": (40,), "validation": (12,)})
DEEPER = replace(BEGUN, taps={"encoder": (0, 1, 2, 3), "decoder": (1, 2)})
EVERYTHING = Growing(
    parts={"train": (40, 25, 9), "validation": (12,)}, taps={"encoder": (0, 1, 2, 3), "decoder": (0, 1)}
)
STEPS = {"begun": BEGUN, "longer": LONGER, "wider": WIDER, "deeper": DEEPER, "everything": EVERYTHING}


if __name__ == "__main__":
    STEPS[sys.argv[2]].build(Path(sys.argv[1]))
