"""Copying a finished store into a folder: from a shared disk to a node's own, from scratch to a shared disk, from object storage.

A copy is written as any store is: each file whole under a temporary name first, receipts after their shards, the manifest
last. Killed at any instant the same copy goes on, several at once do no harm, and a copy that is not finished is refused by
readers. Every byte is checked against the digest that the source's plans and receipts tell.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from . import commit, leases, ledger
from .beginning import refuse_foreign
from .documents import DOCUMENT_BYTES, FileRecord, Manifest, plan_path
from .errors import SherlCacheError, StoreCorrupt, StoreStale, UsageError
from .metadata import complete_metadata
from .opening import open_snapshot
from .place import Place, local_folder, open_files, parse_place
from .readers.local import LocalFiles
from .writer import StoreWriter

COPY_BYTES: Final = 4 << 20
"""Of a file, so much is held at a time."""


class StoreCopy:
    """The newest snapshot of a finished store, and the folder that it goes into."""

    def __init__(self, source: str | Place, target: str | Place) -> None:
        """Nothing is written yet.

        Raises what `Store.open` does for the source; UsageError where the target is no folder, holds something else or is
        the source; StoreStale where it holds another store, or one that has grown beyond this one.
        """
        self.source = parse_place(source)
        self.root = local_folder(target, "copied")
        self._from = open_files(self.source)
        snapshot = open_snapshot(self.source, self._from, allow_partial=False, number=None)
        assert snapshot.manifest is not None
        self.chain, self.manifest = snapshot.chain, snapshot.manifest
        if isinstance(self.source, Path) and self.root.exists() and self.root.samefile(self.source):
            raise UsageError(f"{self.root}: is the store itself: copy it into another folder")
        refuse_foreign(self.root)
        self._to = LocalFiles(self.root)
        self._refuse_other()

    def lacking(self) -> int:
        """Bytes that are to be copied still, small documents aside."""
        files = sum(record.bytes for path, record in self._blobs() if self._to.size(path) != record.bytes)
        return files + sum(
            record.bytes
            for piece in self._pieces()
            for path, record in self._shards(piece)
            if self._to.size(path) != record.bytes
        )

    def run(self, advance: Callable[[int], None] = lambda size: None) -> Manifest:
        """Copy what is lacking; `advance` is told the bytes of each read. The manifest of the copy.

        Raises StoreCorrupt where the source's bytes are not what was committed, and what commit.py raises.
        """
        commit.sweep(self.root)
        commit.settle(self.root, but=leases.FOLDER)
        for path, record in self._blobs():
            if self._to.size(path) != record.bytes:
                self._copy(path, record, advance)
        for number, plan in enumerate(self.chain.plans, 1):
            commit.publish(self.root / plan_path(number), [plan.to_bytes()])
        complete_metadata(self.root, self.chain)
        for piece in self._pieces():
            if ledger.whole_receipt(self._to, piece) is None:
                for path, record in self._shards(piece):
                    self._copy(path, record, advance)
                data = self._from.read(piece.path, DOCUMENT_BYTES)
                commit.publish(self.root / piece.path, [data or b""])
        made = StoreWriter.open(self.root).finalize()
        if made.digest != self.manifest.digest:
            raise SherlCacheError(
                f"{self.root}: the copy has another digest than {self.source}; remove it and copy again"
            )
        return made

    def _refuse_other(self) -> None:
        there = ledger.find_chain(self._to)
        if there is None:
            return
        common = min(len(there.digests), len(self.chain.digests))
        if there.digests[:common] != self.chain.digests[:common]:
            raise StoreStale(f"{self.root}: holds another store than {self.source}: choose another folder")
        if len(there.digests) > common:
            raise StoreStale(
                f"{self.root}: holds the same store with more in it than {self.source}: choose another folder, or copy the "
                "other way"
            )

    def _blobs(self) -> Iterator[tuple[str, FileRecord]]:
        plan = self.chain.head
        yield from ((f"sherl/{path}", record) for path, record in sorted(plan.files.items()))
        yield from ((table.path, table.record) for table in plan.tables() if table.record is not None)

    def _pieces(self) -> Iterator[ledger.Piece]:
        return (piece for pieces in self.chain.pieces.values() for piece in pieces)

    def _shards(self, piece: ledger.Piece) -> Iterator[tuple[str, FileRecord]]:
        held = ledger.read_receipt(self._from, piece)
        if held is None or held.sha256 != self.manifest.receipts[piece.name]:
            raise StoreCorrupt(f"{self._from.place(piece.path)}: the receipt is not the one that the manifest names")
        for record in held.receipt.arrays.values():
            yield record.path, FileRecord(bytes=record.bytes, sha256=record.sha256)

    def _copy(self, path: str, record: FileRecord, advance: Callable[[int], None]) -> None:
        buffer = bytearray(min(COPY_BYTES, max(record.bytes, 1)))
        with commit.Pending(self.root / path) as pending:
            for start in range(0, record.bytes, len(buffer)):
                part = memoryview(buffer)[: min(len(buffer), record.bytes - start)]
                self._from.read_range(path, start, part)
                pending.write(part)
                advance(len(part))
            if pending.record != record:
                raise StoreCorrupt(
                    f"{self._from.place(path)}: its bytes are not those that were committed; `sherl-cache verify --deep --store "
                    f"{self.source}` names what is damaged"
                )
            pending.publish()
