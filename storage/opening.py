"""Opening a store, whole or not at all: its newest finished plan, the receipts, and the sizes of all files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import ledger
from .codecs import encoding
from .documents import Manifest, Plan, Receipt, Unit, root_digest
from .errors import StoreCorrupt, StoreIncomplete, StoreMissing
from .nearest import folder_meant
from .place import Place
from .readers.contract import Files
from .shards import shard_bytes

_SHOWN: Final = 3


@dataclass(frozen=True)
class Snapshot:
    """What a store holds at one time.

    chain: the plans up to that time. manifest: None for a partial store. receipts: of the committed units, by unit
    name. newer: the plans after that time, which are being carried out.
    """

    chain: ledger.Chain
    manifest: Manifest | None
    receipts: dict[str, Receipt]
    newer: tuple[Plan, ...] = ()

    def files(self) -> Iterator[tuple[str, int]]:
        """Path and bytes of every file of blobs, tables and committed shards."""
        plan = self.chain.head
        yield from ((f"sherl/{path}", record.bytes) for path, record in plan.files.items())
        yield from ((table.path, table.record.bytes) for table in plan.tables() if table.record)
        for receipt in self.receipts.values():
            yield from ((record.path, record.bytes) for record in receipt.arrays.values())


def open_snapshot(root: Place, files: Files, allow_partial: bool, number: int | None) -> Snapshot:
    """The snapshot of a store, by the number of its manifest, else the newest. Errors as of `Store.open`."""
    if isinstance(root, Path) and not root.is_dir():
        raise StoreMissing(
            f"{root}: there is no such folder, so no store{folder_meant(root)}: make one with `sherl-cache extract`"
        )
    chain = ledger.read_chain(files)
    found = ledger.newest_snapshot(files, chain, number)
    if found is None and number is not None:
        raise StoreMissing(f"{root}: there is no snapshot {number}; without a number the newest is opened")
    if found is None:
        snapshot = Snapshot(chain, None, ledger.by_unit(chain, _partial(files, chain)))
        _refuse_unfinished(root, chain.head.units(), snapshot.receipts, allow_partial)
    else:
        place, _, manifest = found
        newer, chain = chain.plans[place + 1 :], chain.upto(place)
        snapshot = Snapshot(chain, manifest, ledger.by_unit(chain, _committed(files, chain, manifest)), newer)
        if root_digest(chain.head, snapshot.receipts) != manifest.digest:
            raise StoreCorrupt(f"{root}: the receipts do not add up to the digest of the manifest")
    _check_shards(root, snapshot)
    _check_sizes(root, files, snapshot)
    return snapshot


def _refuse_unfinished(root: Place, units: list[Unit], receipts: dict[str, Receipt], allow_partial: bool) -> None:
    if allow_partial:
        return
    absent = [unit.name for unit in units if unit.name not in receipts]
    if absent:
        shown = ", ".join(absent[:_SHOWN]) + (", ..." if len(absent) > _SHOWN else "")
        raise StoreIncomplete(
            f"{root}: {len(absent)} of {len(units)} units are missing ({shown}): run the same extract "
            "command again to write them"
        )
    raise StoreIncomplete(
        f"{root}: every unit is there but no valid manifest: run the same extract command again to write it"
    )


def _partial(files: Files, chain: ledger.Chain) -> dict[str, Receipt]:
    pieces = [piece for held in chain.pieces.values() for piece in held]
    found = {piece.name: ledger.whole_receipt(files, piece) for piece in pieces}
    return {name: receipt for name, receipt in found.items() if receipt is not None}


def _committed(files: Files, chain: ledger.Chain, manifest: Manifest) -> dict[str, Receipt]:
    """By piece, the receipts that a manifest names."""
    found = {}
    for piece in (piece for held in chain.pieces.values() for piece in held):
        receipt = ledger.read_receipt(files, piece)
        if receipt is None:
            raise StoreCorrupt(f"{files.place(piece.path)}: the receipt is missing, the manifest names it")
        if receipt.file_sha256 != manifest.receipts.get(piece.name):
            raise StoreCorrupt(f"{files.place(piece.path)}: the receipt is not the one that the manifest names")
        found[piece.name] = receipt
    return found


def _check_shards(root: Place, snapshot: Snapshot) -> None:
    """The sizes that receipts tell must be those of the plan, or chunks would be looked for at wrong places."""
    plan = snapshot.chain.head
    stored = encoding(plan.encoding)
    if stored.compressed:
        return
    planned = {
        array.path: (array.stream_plan.chunk_rows * array.stored_width * stored.itemsize, array.split_plan)
        for array in plan.arrays()
    }
    groups = {unit.name: unit.groups for unit in plan.units()}
    for name, receipt in snapshot.receipts.items():
        for array, record in receipt.arrays.items():
            chunk, split_plan = planned[array]
            if record.bytes != shard_bytes(groups[name], chunk, split_plan.groups_per_unit):
                raise StoreCorrupt(f"{root / record.path}: the receipt tells another size than the plan")


def _check_sizes(root: Place, files: Files, snapshot: Snapshot) -> None:
    partial = snapshot.manifest is None
    for path, planned in snapshot.files():
        _check_size(root, files, path, [planned], partial)
    # readers do not use the zarr metadata, and while a store grows it may for a moment be that of any of its plans
    plans = (*snapshot.chain.plans, *snapshot.newer)
    for path in (snapshot.chain.plans[0] if partial else snapshot.chain.head).metadata:
        _check_size(root, files, path, [plan.metadata[path].bytes for plan in plans if path in plan.metadata], partial)


def _check_size(root: Place, files: Files, path: str, planned: list[int], partial: bool) -> None:
    size = files.size(path)
    if size not in planned:
        found = "is missing" if size is None else f"has {size:,} bytes, {planned[0]:,} were committed"
        if size is None and partial:
            raise StoreIncomplete(f"{root / path}: {found}: run extract again to complete the store")
        raise StoreCorrupt(f"{root / path}: the file {found}")
