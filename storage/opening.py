"""Opening a store, whole or not at all: its newest finished plan and the manifest, the sizes of what every reader needs, and
of a store of a moderate number of units every receipt and every shard. Larger ones are looked at unit by unit, when
something of one is read (receipts.py), so that opening takes no longer for them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import ledger
from .codecs import encoding
from .documents import Manifest, Plan, Tally, Unit
from .errors import StoreCorrupt, StoreIncomplete, StoreMissing
from .nearest import folder_meant
from .place import Place
from .readers.contract import Files
from .receipts import Receipts
from .shards import chunk_stride, index_bytes

UNITS_LOOKED_AT: Final = 1024
"""A store of at most so many units is looked at whole when it is opened."""
REMOTE_UNITS_LOOKED_AT: Final = 32
"""The same where each receipt is a request to a server."""
_SHOWN: Final = 3


@dataclass(frozen=True)
class Snapshot:
    """What a store holds at one time.

    chain: the plans up to that time. manifest: None for a partial store. receipts: of the committed units, by unit
    name. newer: the plans after that time, which are being carried out.
    """

    chain: ledger.Chain
    manifest: Manifest | None
    receipts: Receipts
    newer: tuple[Plan, ...] = ()

    def files(self) -> Iterator[tuple[str, int]]:
        """Path and bytes of every file of blobs and tables."""
        plan = self.chain.head
        yield from ((f"sherl/{path}", record.bytes) for path, record in plan.files.items())
        yield from ((table.path, table.record.bytes) for table in plan.tables() if table.record)

    def tally(self) -> Tally:
        """Digest and bytes of the committed units, from their receipts, whose shards are looked for."""
        found = Tally(self.chain.head)
        for name in sorted(self.receipts):
            found.add(name, self.receipts.look(name).shards())
        return found


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
        snapshot = Snapshot(chain, None, Receipts(files, chain, _committed(files, chain)))
        _refuse_unfinished(root, chain.head.units(), snapshot.receipts, allow_partial)
    else:
        place, _, manifest = found
        newer, chain = chain.plans[place + 1 :], chain.upto(place)
        snapshot = Snapshot(chain, manifest, Receipts(files, chain, manifest.receipts), newer)
        _refuse_other_manifest(root, chain, manifest)
    _check_sizes(root, files, snapshot)
    if len(snapshot.receipts) <= (UNITS_LOOKED_AT if isinstance(root, Path) else REMOTE_UNITS_LOOKED_AT):
        _look_at_all(root, snapshot)
    return snapshot


def _refuse_unfinished(root: Place, units: list[Unit], receipts: Receipts, allow_partial: bool) -> None:
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


def _committed(files: Files, chain: ledger.Chain) -> dict[str, str]:
    """By piece, the digest of each receipt whose shards are there in full size."""
    pieces = [piece for held in chain.pieces.values() for piece in held]
    found = {piece.name: ledger.whole_receipt(files, piece) for piece in pieces}
    return {name: held.sha256 for name, held in found.items() if held is not None}


def _refuse_other_manifest(root: Place, chain: ledger.Chain, manifest: Manifest) -> None:
    """A manifest must name what the plan asks for, in the sizes that the plan tells."""
    plan = chain.head
    named = {piece.name for pieces in chain.pieces.values() for piece in pieces}
    sizes = _planned_bytes(plan) if not encoding(plan.encoding).compressed else manifest.arrays
    if (
        (manifest.fingerprint, manifest.features) != (plan.fingerprint, plan.features)
        or manifest.receipts.keys() != named
        or manifest.arrays.keys() != {array.path for array in plan.arrays()}
        or manifest.arrays != sizes
    ):
        raise StoreCorrupt(
            f"{root}: the manifest does not name what the plan asks for: `sherl-cache verify` tells what is damaged"
        )


def _planned_bytes(plan: Plan) -> dict[str, int]:
    """By array, the bytes of all its shards, where chunks are not compressed."""
    itemsize, found = encoding(plan.encoding).itemsize, {}
    for array in plan.arrays():
        split, height = array.split_plan, array.stream_plan.chunk_rows
        units = -(-split.groups // split.groups_per_unit)
        stride = chunk_stride(height * array.stored_width * itemsize)
        found[array.path] = split.held_groups * stride + units * index_bytes(split.groups_per_unit)
    return found


def _look_at_all(root: Place, snapshot: Snapshot) -> None:
    """Every receipt and the size of every shard; receipts must add up to what the manifest says of them all."""
    tally, manifest = snapshot.tally(), snapshot.manifest
    if manifest is not None and (tally.digest, tally.arrays) != (manifest.digest, manifest.arrays):
        raise StoreCorrupt(f"{root}: the receipts do not add up to the digest of the manifest")


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
