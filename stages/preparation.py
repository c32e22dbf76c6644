"""A store that is planned: the model, the rows and the plan, and what extract and the bill ask of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pyarrow as pa

from ..storage import FileRecord, StoreWriter, encoding, keys, placement_columns, store_bytes, write_examples
from ..storage.errors import StoreStale
from .calibrate import calibrations_at
from .inputs import forward_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ..storage import Bill, Calibration, PackedSplit, Plan
    from .calibrate import Survey
    from .grow import Known
    from .inputs import Batches, Inputs
    from .load import LoadedModel
    from .prepare import ExtractSettings
    from .spool import Spool
    from .text import EncodeStats
    from .tokens import TokenBatch

PROBE_EXAMPLES = 512


@dataclass(frozen=True)
class Preparation:
    """Everything that extract and plan need: the model, the rows, and the plan of the store."""

    settings: ExtractSettings
    loaded: LoadedModel
    inputs: Inputs
    batches: Batches
    """What makes the batches of a forward."""
    taps: Mapping[str, tuple[int, ...]]
    stats: Mapping[str, EncodeStats]
    packed: Mapping[str, PackedSplit]
    """The first part of each split."""
    parts: Mapping[str, Sequence[PackedSplit]]
    """By split, every part: one, and one for each time that examples were added."""
    spools: Mapping[str, Spool]
    files: Mapping[str, bytes]
    plan: Plan
    known: Known | None
    """The store that is there already."""
    survey: Survey
    replan: Callable[[Mapping[str, Calibration]], Preparation]
    """The same with other calibrations."""

    def create_writer(self, root: Path) -> StoreWriter:
        """Begin the store at `root`, or go on with it. Raises StoreStale where another one is there."""
        try:
            return self._create_writer(root)
        except StoreStale:
            # Another process may have begun the same store meanwhile, with a calibration of its own.
            theirs = calibrations_at(root, self.taps, self.loaded.table.widths(self.loaded.config))
            if not theirs or theirs == self.survey.calibrations:
                raise
            return self.replan(theirs)._create_writer(root)

    def _create_writer(self, root: Path) -> StoreWriter:
        return StoreWriter.create(root, self.plan, self.files, self.tables())

    def tables(self) -> dict[str, Callable[[BinaryIO], None]]:
        """By table, as storage calls them (`train`, `train.2`, ...), what writes it."""
        return {
            split if number == 1 else f"{split}.{number}": partial(self._write_table, split, packed)
            for split, parts in self.parts.items()
            for number, packed in enumerate(parts, 1)
        }

    def file_records(self) -> dict[str, FileRecord]:
        """Size and digest of every blob, by path under `sherl/`."""
        return {path: FileRecord(bytes=len(data), sha256=keys.digest_bytes(data)) for path, data in self.files.items()}

    def bill(self) -> Bill:
        """Bytes and files that the store will hold."""
        return store_bytes(self.plan, files={name: len(data) for name, data in self.files.items()})

    def added_bytes(self) -> int:
        """About the bytes that extract will write: the bill, or where a store has begun the bill of what it grows by."""
        if self.known is None:
            return self.bill().total
        return max(0, self.bill().total - store_bytes(self.known.chain.head).total)

    def unit_bytes(self) -> int:
        """Bytes of the largest unit in all taps, which stage one holds in memory."""
        itemsize = encoding(self.plan.encoding).itemsize
        return max(
            sum(
                split.groups_per_unit * stream.chunk_rows * stream.stored_width * itemsize * len(stream.taps)
                for stream in split.streams.values()
            )
            for split in self.plan.splits.values()
        )

    def sample(self, examples: int = 8) -> TokenBatch:
        """The first rows of the first split, for the proof that the model can be split."""
        split = next(iter(self.packed))
        rows = self.rows(split, examples)
        return self.batches.batch(split, rows, np.arange(len(rows)))

    def probe_batches(self) -> Iterator[tuple[int, TokenBatch]]:
        """Forward batches of some hundred examples as extract would make them, with the tokens of each, longest
        first.
        """
        split = next(iter(self.packed))
        rows = self.rows(split, PROBE_EXAMPLES)
        lengths = self.batches.lengths(rows)
        for chosen in reversed(list(forward_batches(lengths, self.settings.batch_tokens))):
            yield int(lengths[chosen].sum()), self.batches.batch(split, rows, chosen)

    def input_tokens(self) -> int:
        """Tokens that forwards read, the amount of work."""
        return sum(map(self.inputs.forward_tokens, self.spools.values()))

    def rows(self, split: str, examples: int) -> pa.Table:
        """The first rows of a split in written order, token ids and labels."""
        batches = self.spools[split].take(self.packed[split].order[:examples])
        return pa.Table.from_batches(list(batches))

    def _write_table(self, split: str, packed: PackedSplit, file: BinaryIO) -> None:
        """Write the example table of a part of a split in written order."""

        def placed() -> Iterator[pa.RecordBatch]:
            first = 0
            for batch in self.spools[split].take(packed.order):
                columns = placement_columns(packed, first, batch.num_rows)
                names = [*batch.schema.names, *columns]
                yield pa.RecordBatch.from_arrays([*batch.columns, *columns.values()], names=names)
                first += batch.num_rows

        write_examples(file, placed(), packed.unit_examples, packed.streams)
