"""Small stores that grow, for the tests of growth."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.storage.small import Small
from sherl_cache.storage import Store, decode
from sherl_cache.storage.widths import Width


@dataclass(frozen=True)
class Growing(Small):
    """A small store with an encoder and a decoder whose examples have one to three segments."""

    parts: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"train": (40,)})
    taps: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"encoder": (0, 2), "decoder": (1,)})
    widths: Mapping[str, Width] = field(default_factory=lambda: {"encoder": 8, "decoder": 4})
    sized_for: Mapping[str, tuple[int, ...]] | None = field(
        default_factory=lambda: {"encoder": (0, 2), "decoder": (1,)}
    )
    chunk_bytes: tuple[int, int] = (1024, 4096)
    unit_memory: int = 16384


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
                    assert np.array_equal(rows, case.values(source, stream, tap, len(rows))), (source, stream, tap)


BEGUN = Growing()
LONGER = replace(BEGUN, parts={"train": (40, 25)})
WIDER = replace(BEGUN, parts={"train": (40,), "validation": (12,)})
DEEPER = replace(BEGUN, taps={"encoder": (0, 1, 2, 3), "decoder": (1, 2)})
EVERYTHING = Growing(
    parts={"train": (40, 25, 9), "validation": (12,)}, taps={"encoder": (0, 1, 2, 3), "decoder": (0, 1)}
)
STEPS = {"begun": BEGUN, "longer": LONGER, "wider": WIDER, "deeper": DEEPER, "everything": EVERYTHING}
