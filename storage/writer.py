"""Writing a store: what it shall hold first (beginning.py), then its units, and the manifest last.

Every step is idempotent: run again after a kill, `create` completes what is missing, `missing` names the
units that are not committed, and `finalize` publishes the manifest once every unit is. A unit is committed by
its receipt alone.
"""

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from . import commit, leases, ledger, shards
from .beginning import WriteTable, begin_store
from .buffer import UnitBuffer
from .calibration import Calibration, stored_calibrations
from .checks import refuse_gaps, refuse_misfits, whole_shard
from .codecs import pack
from .documents import (
    ArrayPlan,
    Manifest,
    Plan,
    Receipt,
    ShardRecord,
    Tally,
    Unit,
    array_path,
    shard_path,
)
from .errors import InvalidInput, SherlCacheError, StoreCorrupt, StoreIncomplete, StoreStale
from .examples import ExampleTable, open_table
from .metadata import grow_metadata
from .place import local_folder
from .readers.chunks import ChunkReader
from .readers.local import LocalFiles
from .stale import environment_changes

_MANIFEST_ATTEMPTS: Final = 16
_SHOWN: Final = 3


class StoreWriter:
    """Writes the units of one store. Any number of processes may hold one of the same store at a time."""

    def __init__(self, root: Path, chain: ledger.Chain, warnings: list[str]) -> None:
        self.root = root
        self.chain = chain
        self.plan = chain.head
        self.warnings = warnings
        """What changed in the environment since the store was begun, one line each."""
        self._files = LocalFiles(root)
        self._tables: dict[str, ExampleTable] = {}
        self._calibrations: dict[str, Calibration] | None = None
        self._first, self._step = 0, 1

    @classmethod
    def create(
        cls,
        root: str | Path,
        plan: Plan,
        files: Mapping[str, bytes],
        tables: Mapping[str, WriteTable],
    ) -> "StoreWriter":
        """Begin a store, go on with the same one, or let it grow by what the plan holds beside it.

        plan: without records of files and tables, which are made here. files: blobs by their path under
        `sherl/`. tables: by split (`train`, and `train.2` for the first part that was added to it), writes the example
        table to a binary file.
        Raises StoreStale where the store there was made from something else, UsageError where the folder
        holds something else, and what commit.py raises.
        """
        root = local_folder(root)
        chain = begin_store(root, plan, files, tables)
        return cls(root, chain, environment_changes(chain.plans[0], plan))

    @classmethod
    def open(cls, root: str | Path, plan: str | None = None) -> "StoreWriter":
        """A writer for the units of a store that `create` has begun, in another process.

        plan: digest of the plan to carry out, where later ones may have come; None: the last one. Raises StoreMissing
        where there is no store, StoreStale where it has no such plan.
        """
        root = local_folder(root)
        chain = ledger.read_chain(LocalFiles(root))
        if plan is not None:
            if plan not in chain.digests:
                raise StoreStale(
                    f"{root}: the store here is another one: its plans are not those of the store that was begun"
                )
            chain = chain.upto(chain.digests.index(plan))
        return cls(root, chain, [])

    def part(self, number: int, count: int) -> "StoreWriter":
        """The same with a share of the units, number `number` (from 1) of `count`: every `count`-th one, so that shares are
        of one size in each split, and those of different numbers have no unit in common.
        """
        share = copy.copy(self)
        share._first, share._step = number - 1, count
        return share

    def units(self) -> list[Unit]:
        """Every unit of the plan, or of this writer's share."""
        return self.plan.units()[self._first :: self._step]

    def missing(self) -> list[Unit]:
        """Those of `units` that are not committed, or whose shards are not there in full size."""
        return [unit for unit in self.units() if self._receipt(unit) is None]

    def committed(self, unit: Unit) -> bool:
        """Whether the unit is committed and its shards are there in full size."""
        return self._receipt(unit) is not None

    def lacking(self, unit: Unit) -> dict[str, tuple[int, ...]]:
        """Taps of the unit that are not committed, by stream: all of a new unit, some where the store has grown."""
        found: dict[str, tuple[int, ...]] = {}
        paths = self._lacking_paths(unit)
        for array in self.plan.arrays():
            if array.split == unit.split and array.path in paths:
                found[array.stream] = (*found.get(array.stream, ()), array.tap)
        return found

    def buffer(self, unit: Unit, taps: Mapping[str, Collection[int]] | None = None) -> UnitBuffer:
        """Arrays of the unit in memory, filled with fill.

        taps: by stream, those that are wanted; None: those that are lacking, all where none is. The arrays of a buffer
        are what `put` takes and `write` expects.
        """
        paths: Collection[str] | None = self._lacking_paths(unit) or None
        if taps is not None:
            paths = [array_path(unit.split, stream, tap) for stream, numbers in taps.items() for tap in numbers]
        return UnitBuffer(self.plan, unit, self._known_calibrations(), paths)

    def table(self, split: str) -> ExampleTable:
        """The example table of a split."""
        if split not in self._tables:
            self._tables[split] = open_table(self._files, self.plan, split)
        return self._tables[split]

    def write(self, unit: Unit, buffer: UnitBuffer) -> Receipt:
        """Commit a unit; does nothing when it is committed already.

        Raises NonFinite where values do not fit the encoding, InvalidInput where rows of the unit were not
        put; nothing is written then.
        """
        if (receipt := self._receipt(unit)) is not None:
            return receipt
        if buffer.unit != unit:
            raise InvalidInput(f"the buffer holds unit {buffer.unit.name}, not {unit.name}")
        table = self.table(unit.split)
        refuse_misfits(buffer, table)
        refuse_gaps(buffer, table)
        arrays = {array.path: array for array in buffer.plans.values()}
        for piece in self._pieces(unit):
            if ledger.whole_receipt(self._files, piece) is None:
                if absent := [path for path in piece.arrays if path not in arrays]:
                    raise InvalidInput(f"the buffer of unit {unit.name} does not hold {', '.join(absent)}")
                self._write_piece(piece, buffer, [arrays[path] for path in piece.arrays])
        committed = self._receipt(unit)
        if committed is None:
            raise StoreCorrupt(f"{self.root / unit.receipt_path}: shards of the unit vanished while it was written")
        leases.drop(self.root, unit.name)
        return committed

    def write_shard(self, buffer: UnitBuffer, array: str) -> ShardRecord:
        """Write the shard of one array of a unit, without committing it; for a repair."""
        refuse_misfits(buffer, self.table(buffer.unit.split))
        refuse_gaps(buffer, self.table(buffer.unit.split))
        return self._write_shard(buffer, next(plan for plan in buffer.plans.values() if plan.path == array))

    def finalize(self) -> Manifest:
        """Publish the manifest of the whole store. Raises StoreIncomplete where units are missing.

        Where units seem missing while another writer may be at work, looks once more after the seconds for which a
        network file system may not show what that one committed.
        """
        tally, receipts, absent = self._tally()
        if absent and leases.wait_for_others(self.root):
            tally, receipts, absent = self._tally()
        if absent:
            raise StoreIncomplete(
                f"{self.root}: {len(absent)} of {len(self.chain.pieces)} units are missing "
                f"({', '.join(absent[:_SHOWN])}{', ...' if len(absent) > _SHOWN else ''}): extract them first"
            )
        manifest = Manifest.sealed(
            features=self.plan.features,
            plan=self.chain.digests[-1],
            fingerprint=self.plan.fingerprint,
            digest=tally.digest,
            receipts=receipts,
            arrays=tally.arrays,
        )
        commit.settle(self.root, but=leases.FOLDER)
        grow_metadata(self.root, self.chain)
        for _ in range(_MANIFEST_ATTEMPTS):
            # before the look at them: a manifest that another writer publishes meanwhile is found in the way
            number = max(ledger.manifest_numbers(self._files), default=0) + 1
            newest = ledger.newest_manifest(self._files, self.chain.digests[-1])
            if newest is not None and newest[1] == manifest:
                self._heal_metadata()
                leases.drop(self.root)
                commit.sweep(self.root, finished=self._finished_folders())
                return manifest
            commit.publish(self.root / ledger.manifest_path(number), [manifest.to_bytes()], accept=lambda _: True)
        raise SherlCacheError(f"{self.root}: the manifest could not be published, another process keeps doing so")

    def _heal_metadata(self) -> None:
        """Where another process finished a later plan meanwhile, our metadata may have come after its: put its back."""
        chain = ledger.read_chain(self._files)
        if newest := ledger.newest_snapshot(self._files, chain):
            grow_metadata(self.root, chain.upto(newest[0]))

    def _tally(self) -> tuple[Tally, dict[str, str], list[str]]:
        """Digest and bytes of all units; by piece, the digest of its receipt; units that are not committed, or not whole."""
        tally, digests, absent = Tally(self.plan), dict[str, str](), list[str]()
        for name, pieces in sorted(self.chain.pieces.items()):
            found = {piece.name: ledger.whole_receipt(self._files, piece) for piece in pieces}
            held = {piece: receipt for piece, receipt in found.items() if receipt is not None}
            if len(held) < len(found):
                absent.append(name)
                continue
            tally.add(name, (shard for whole in held.values() for shard in whole.receipt.shards()))
            digests |= {piece: whole.sha256 for piece, whole in held.items()}
        return tally, digests, absent

    def _finished_folders(self) -> set[str]:
        """Folders of shards that are all committed; elsewhere another process may be letting the store grow."""
        paths = (shard_path(array.path, unit.index) for array in self.plan.arrays() for unit in self.plan.units())
        return {path.rpartition("/")[0] for path in paths}

    def _known_calibrations(self) -> dict[str, Calibration]:
        if self._calibrations is None:
            self._calibrations = stored_calibrations(self._files, self.plan)
        return self._calibrations

    def _pieces(self, unit: Unit) -> tuple[ledger.Piece, ...]:
        return self.chain.pieces.get(unit.name, ())

    def _receipt(self, unit: Unit) -> Receipt | None:
        found = [ledger.whole_receipt(self._files, piece) for piece in self._pieces(unit)]
        whole = [held.receipt for held in found if held is not None]
        return ledger.joined(whole) if whole and len(whole) == len(found) else None

    def _lacking_paths(self, unit: Unit) -> set[str]:
        pieces = [piece for piece in self._pieces(unit) if ledger.whole_receipt(self._files, piece) is None]
        return {path for piece in pieces for path in piece.arrays}

    def _write_piece(self, piece: ledger.Piece, buffer: UnitBuffer, arrays: list[ArrayPlan]) -> None:
        unit = piece.unit
        records = {array.path: self._write_shard(buffer, array) for array in arrays}
        receipt = Receipt(plan=piece.plan_sha256, unit=unit.name, split=unit.split, index=unit.index, arrays=records)
        commit.publish(
            self.root / piece.path,
            [receipt.to_bytes()],
            accept=lambda _: ledger.whole_receipt(self._files, piece) is not None,
        )

    def _write_shard(self, buffer: UnitBuffer, array: ArrayPlan) -> ShardRecord:
        unit, key = buffer.unit, (array.stream, array.tap)
        chunk_rows = array.stream_plan.chunk_rows
        values = buffer.arrays[key]
        chunks = [values[group * chunk_rows : (group + 1) * chunk_rows] for group in range(unit.groups)]
        stored = buffer.encoding
        slots = array.split_plan.groups_per_unit
        path = shard_path(array.path, unit.index)
        record = commit.publish(
            self.root / path,
            shards.encode([pack(chunk, stored) for chunk in chunks], slots),
            accept=lambda _: whole_shard(self._files, path, unit.groups, slots, chunks[0].nbytes, stored),
        )
        return ShardRecord(
            path=path,
            bytes=record.bytes,
            sha256=record.sha256,
            rows=int(buffer.written[key].sum()),
            crc32c=ChunkReader(self._files, stored).checksums(path, unit.groups, slots, chunks[0].nbytes),
        )
