"""The committed units of an open store: each receipt is read, and held to what manifest and plan say, when its unit is."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import ledger
from .codecs import encoding
from .documents import Receipt
from .errors import StoreCorrupt
from .readers.contract import Files
from .shards import shard_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Receipts(Mapping[str, Receipt]):
    """Receipts by unit. Of one that was looked at, the checksums of its chunks are kept in memory, and nothing else."""

    def __init__(self, files: Files, chain: ledger.Chain, digests: Mapping[str, str]) -> None:
        """digests: of the file of each receipt, by piece, as the manifest names them or as they were found; units of which a
        piece is not among them are not there.
        """
        plan = chain.head
        self._files, self._digests = files, digests
        self._pieces = {
            name: pieces for name, pieces in chain.pieces.items() if all(piece.name in digests for piece in pieces)
        }
        self._compressed = encoding(plan.encoding).compressed
        itemsize = encoding(plan.encoding).itemsize
        self._chunks = {
            array.path: (array.stream_plan.chunk_rows * array.stored_width * itemsize, array.split_plan.groups_per_unit)
            for array in plan.arrays()
        }
        """By array, the bytes of a chunk in memory and the chunks that a shard has room for."""
        self._rows: dict[str, int] = {}
        """Row of each array in the checksums of a unit of its split."""
        counts: dict[str, int] = {}
        for array in plan.arrays():
            self._rows[array.path] = counts.get(array.split, 0)
            counts[array.split] = self._rows[array.path] + 1
        self._checksums: dict[str, NDArray[np.uint32]] = {}

    def __getitem__(self, unit: str) -> Receipt:
        """The receipt of a unit, read anew; that of its first piece with the arrays of all.

        Raises StoreCorrupt where one is missing or not the one that was committed.
        """
        return ledger.joined([self._read(piece) for piece in self._pieces[unit]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def __contains__(self, unit: object) -> bool:
        return unit in self._pieces

    def look(self, unit: str) -> Receipt:
        """The same, its shards being there in the size that receipt and plan tell; else StoreCorrupt."""
        receipt = self._checked(unit)
        for record in receipt.arrays.values():
            if (size := self._files.size(record.path)) != record.bytes:
                found = "is missing" if size is None else f"has {size:,} bytes, {record.bytes:,} were committed"
                raise StoreCorrupt(f"{self._files.place(record.path)}: the file {found}")
        return receipt

    def checksums(self, path: str) -> Sequence[int]:
        """The committed crc32c of each chunk of a shard, by its path; the receipt of its unit is read for the first of them.

        Raises StoreCorrupt as `[]` does, and where the receipt tells other sizes than the plan.
        """
        array, _, index, _ = path.rsplit("/", 3)
        unit = f"{array.partition('/')[0]}-{int(index):05d}"
        if unit not in self._checksums:
            self._checked(unit)
        found: list[int] = self._checksums[unit][self._rows[array]].tolist()
        return found

    def _read(self, piece: ledger.Piece) -> Receipt:
        held = ledger.read_receipt(self._files, piece)
        if held is None:
            raise StoreCorrupt(
                f"{self._files.place(piece.path)}: the receipt is missing, though its unit was committed"
            )
        if held.sha256 != self._digests[piece.name]:
            raise StoreCorrupt(f"{self._files.place(piece.path)}: the receipt is not the one that was committed")
        return held.receipt

    def _checked(self, name: str) -> Receipt:
        """A receipt whose sizes are those of the plan, or chunks would be looked for at wrong places; its checksums are kept."""
        receipt, groups = self[name], self._pieces[name][0].unit.groups
        checksums = np.empty((len(receipt.arrays), groups), dtype=np.uint32)
        for array, record in receipt.arrays.items():
            chunk, slots = self._chunks[array]
            other = not self._compressed and record.bytes != shard_bytes(groups, chunk, slots)
            if other or len(record.crc32c) != groups:
                raise StoreCorrupt(f"{self._files.place(record.path)}: the receipt tells another size than the plan")
            checksums[self._rows[array]] = record.crc32c
        self._checksums[name] = checksums
        return receipt
