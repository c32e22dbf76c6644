"""Writing a store: the plan first, then tables, weights and zarr metadata, then units, and the manifest last.

Every step is idempotent: run again after a kill, `create` completes what is missing, `missing` names the
units that are not committed, and `finalize` publishes the manifest once every unit is. A unit is committed by
its receipt alone.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final, cast

from . import commit, keys, leases, ledger, shards
from .arrays import ZARR_DOCUMENT, zarr_documents, zarr_records
from .buffer import UnitBuffer
from .calibration import Calibration, calibration_records, planned_calibrations, stored_calibrations
from .checks import refuse_gaps, refuse_misfits, whole_shard
from .codecs import encoding, pack
from .documents import (
    PLAN,
    ArrayPlan,
    FileRecord,
    Manifest,
    Plan,
    Receipt,
    ShardRecord,
    Unit,
    array_path,
    parse,
    plan_path,
    root_digest,
    shard_path,
)
from .errors import (
    InvalidInput,
    SherlCacheError,
    StoreCorrupt,
    StoreIncomplete,
    StoreStale,
    UsageError,
)
from .examples import ExampleTable, open_table
from .growth import grown, with_tables
from .place import local_folder
from .readers.chunks import ChunkReader
from .readers.local import LocalFiles
from .stale import differences, environment_changes

WriteTable = Callable[[BinaryIO], None]

_MANIFEST_ATTEMPTS: Final = 16
_PLAN_ATTEMPTS: Final = 64
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
        self._documents: dict[str, dict[str, bytes]] = {}

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
        _refuse_foreign(root)
        if set(tables) != (names := {table.name for table in plan.tables()}):
            raise InvalidInput(f"tables are given for {sorted(tables)}, the plan has {sorted(names)}")
        commit.sweep(root)
        commit.settle(root, but=leases.FOLDER)
        local = LocalFiles(root)
        records = {path: FileRecord(bytes=len(data), sha256=keys.digest_bytes(data)) for path, data in files.items()}
        with ExitStack() as stack:
            spooled: dict[str, commit.Pending] = {}
            for _ in range(_PLAN_ATTEMPTS):
                chain = ledger.find_chain(local)
                target = plan if chain is None else _target(root, chain, plan, records)
                if target is None:
                    break
                for table in target.tables():
                    if table.record is None and table.name not in spooled:
                        spooled[table.name] = _spool(stack, root, table.path, tables[table.name])
                begun = _completed(target, records, spooled, planned_calibrations(plan, files.get))
                for _, record in calibration_records(plan):
                    if local.size(f"sherl/{record.file}") is None:
                        commit.publish(root / "sherl" / record.file, [files[record.file]])
                number = 1 if chain is None else len(chain.plans) + 1
                commit.publish(root / plan_path(number), [begun.to_bytes()], accept=_is_plan)
            else:
                raise SherlCacheError(f"{root}: the store could not be begun, other processes keep letting it grow")
            assert chain is not None
            writer = cls(root, chain, environment_changes(chain.plans[0], plan))
            writer._complete(stack, files, tables, spooled)
        return writer

    @classmethod
    def open(cls, root: str | Path) -> "StoreWriter":
        """A writer for the units of a store that `create` has begun, in another process."""
        root = local_folder(root)
        return cls(root, ledger.read_chain(LocalFiles(root)), [])

    def units(self) -> list[Unit]:
        """Every unit of the plan."""
        return self.plan.units()

    def missing(self) -> list[Unit]:
        """Units that are not committed, or whose shards are not there in full size."""
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
        leases.drop(self.root, unit)
        return committed

    def write_shard(self, buffer: UnitBuffer, array: str) -> ShardRecord:
        """Write the shard of one array of a unit, without committing it; for a repair."""
        refuse_misfits(buffer, self.table(buffer.unit.split))
        refuse_gaps(buffer, self.table(buffer.unit.split))
        return self._write_shard(buffer, next(plan for plan in buffer.plans.values() if plan.path == array))

    def finalize(self) -> Manifest:
        """Publish the manifest. Raises StoreIncomplete where units are missing.

        Where units seem missing while another writer may be at work, looks once more after the seconds for which a
        network file system may not show what that one committed.
        """
        receipts = self._receipts()
        if None in receipts.values() and leases.wait_for_others(self.root):
            receipts = self._receipts()
        present = {name: receipt for name, receipt in receipts.items() if receipt is not None}
        units = ledger.by_unit(self.chain, present)
        absent = sorted(set(self.chain.pieces) - set(units))
        if absent:
            raise StoreIncomplete(
                f"{self.root}: {len(absent)} of {len(self.chain.pieces)} units are missing "
                f"({', '.join(absent[:_SHOWN])}{', ...' if len(absent) > _SHOWN else ''}): extract them first"
            )
        manifest = Manifest(
            features=self.plan.features,
            plan=self.chain.digests[-1],
            fingerprint=self.plan.fingerprint,
            digest=root_digest(self.plan, units),
            receipts={name: receipt.file_sha256 for name, receipt in present.items()},
        )
        commit.settle(self.root, but=leases.FOLDER)
        self._grow_metadata()
        for _ in range(_MANIFEST_ATTEMPTS):
            # before the look at them: a manifest that another writer publishes meanwhile is found in the way
            number = max(ledger.manifest_numbers(self._files), default=0) + 1
            newest = ledger.newest_manifest(self._files, self.chain.digests[-1])
            if newest is not None and newest[1] == manifest:
                leases.drop(self.root)
                commit.sweep(self.root, finished=self._finished_folders())
                return manifest
            commit.publish(self.root / ledger.manifest_path(number), [manifest.to_bytes()], accept=lambda _: True)
        raise SherlCacheError(f"{self.root}: the manifest could not be published, another process keeps doing so")

    def _receipts(self) -> dict[str, Receipt | None]:
        """By piece, its receipt; None where it is not committed, or not whole."""
        pieces = [piece for held in self.chain.pieces.values() for piece in held]
        return {piece.name: ledger.whole_receipt(self._files, piece) for piece in pieces}

    def _finished_folders(self) -> set[str]:
        """Folders of shards that are all committed; elsewhere another process may be letting the store grow."""
        paths = (shard_path(array.path, unit.index) for array in self.plan.arrays() for unit in self.units())
        return {path.rpartition("/")[0] for path in paths}

    def _known_calibrations(self) -> dict[str, Calibration]:
        if self._calibrations is None:
            self._calibrations = stored_calibrations(self._files, self.plan)
        return self._calibrations

    def _pieces(self, unit: Unit) -> tuple[ledger.Piece, ...]:
        return self.chain.pieces.get(unit.name, ())

    def _receipt(self, unit: Unit) -> Receipt | None:
        found = [ledger.whole_receipt(self._files, piece) for piece in self._pieces(unit)]
        whole = [receipt for receipt in found if receipt is not None]
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

    def _complete(
        self,
        stack: ExitStack,
        files: Mapping[str, bytes],
        tables: Mapping[str, WriteTable],
        spooled: dict[str, commit.Pending],
    ) -> None:
        """Publish what the plan names and what is not there."""
        for path, record in sorted(self.plan.files.items()):
            if self._files.size(f"sherl/{path}") != record.bytes:
                commit.publish(self.root / "sherl" / path, [files[path]])
        for table in self.plan.tables():
            if table.record is None:
                raise StoreCorrupt(f"{self.root / PLAN}: {table.name!r} has no table")
            if self._files.size(table.path) != table.record.bytes and table.name in tables:
                pending = spooled.get(table.name) or _spool(stack, self.root, table.path, tables[table.name])
                self._refuse_other(table.path, table.record, pending.record)
                pending.publish()
        self._complete_metadata()

    def _complete_metadata(self) -> None:
        """Publish the zarr metadata of the newest plan that is finished, of the first one where none is."""
        place, *_ = ledger.newest_snapshot(self._files, self.chain) or (0,)
        plan, *later = self.chain.plans[place:]
        for path, record in plan.metadata.items():
            sizes = {record.bytes, *(other.metadata[path].bytes for other in later if path in other.metadata)}
            if self._files.size(path) not in sizes:
                commit.publish(self.root / path, [self._made(plan)[path]])

    def _grow_metadata(self) -> None:
        """Put the zarr metadata of the last plan in the place of that of the plan before; the root's comes last."""
        if len(self.chain.plans) == 1:
            return
        for path, record in sorted(self.plan.metadata.items(), key=lambda item: (item[0] == ZARR_DOCUMENT, item[0])):
            if self._files.size(path) != record.bytes or self._files.digest(path)[1] != record.sha256:
                commit.replace(self.root / path, self._made(self.plan)[path])

    def _made(self, plan: Plan) -> dict[str, bytes]:
        """The zarr metadata of a plan, made again."""
        key = plan.extends or ""
        if key not in self._documents:
            documents = zarr_documents(plan, self._known_calibrations())
            for path, record in zarr_records(documents).items():
                self._refuse_other(path, plan.metadata.get(path), record)
            self._documents[key] = documents
        return self._documents[key]

    def _refuse_other(self, path: str, planned: FileRecord | None, made: FileRecord) -> None:
        if planned != made:
            raise StoreStale(
                f"{self.root / path}: what would be written now differs from the plan, which was "
                "begun with other versions of zarr or pyarrow: begin the store again in another folder"
            )


def _target(root: Path, chain: ledger.Chain, plan: Plan, files: dict[str, FileRecord]) -> Plan | None:
    """The plan that the store at `root` shall grow to; None where it holds everything that `plan` asks for."""
    if changed := differences(chain.head, plan, files):
        raise StoreStale(
            f"{root}: the store was made from something else: {'; '.join(changed)}. "
            "Choose another folder for this one, or ask for what the store was made from"
        )
    return grown(chain.head, plan, chain.digests[-1])


def _spool(stack: ExitStack, root: Path, path: str, write: WriteTable) -> commit.Pending:
    pending = stack.enter_context(commit.Pending(root / path))
    write(cast("BinaryIO", pending))
    return pending


def _completed(
    plan: Plan,
    files: dict[str, FileRecord],
    tables: Mapping[str, commit.Pending],
    calibrations: Mapping[str, Calibration],
) -> Plan:
    metadata = zarr_records(zarr_documents(plan, calibrations))
    features = tuple(sorted({*plan.features, *encoding(plan.encoding).features}))
    whole = plan.model_copy(update={"features": features, "files": files, "metadata": metadata})
    whole = with_tables(whole, {name: pending.record for name, pending in tables.items()})
    return parse(Plan, whole.to_bytes(), PLAN)


def _is_plan(path: Path) -> bool:
    try:
        parse(Plan, path.read_bytes(), str(path))
    except (StoreCorrupt, OSError):
        return False
    return True


def _refuse_foreign(root: Path) -> None:
    """A folder that holds something else is not made into a store."""
    if root.is_dir():
        others = [path.name for path in root.iterdir() if not path.name.startswith(".")]
        if others and "sherl" not in others:
            raise UsageError(
                f"{root}: the folder holds no store but other things ({', '.join(sorted(others)[:_SHOWN])}): "
                "choose an empty folder, or one that does not exist yet"
            )
    elif root.exists():
        raise UsageError(f"{root}: is not a folder: choose an empty folder, or one that does not exist yet")
