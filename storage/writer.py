"""Writing a store: the plan first, then tables, weights and zarr metadata, then units, and the manifest last.

Every step is idempotent: run again after a kill, `create` completes what is missing, `missing` names the
units that are not committed, and `finalize` publishes the manifest once every unit is. A unit is committed by
its receipt alone.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final, cast

from . import commit, keys, leases, ledger, shards
from .arrays import zarr_documents, zarr_records
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
    parse,
    root_digest,
    shard_path,
    table_path,
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
from .readers.chunks import ChunkReader
from .readers.local import LocalFiles
from .stale import differences, environment_changes

WriteTable = Callable[[BinaryIO], None]

_MANIFEST_ATTEMPTS: Final = 16
_SHOWN: Final = 3


class StoreWriter:
    """Writes the units of one store. Any number of processes may hold one of the same store at a time."""

    def __init__(self, root: Path, plan: Plan, warnings: list[str]) -> None:
        self.root = root
        self.plan = plan
        self.warnings = warnings
        """What changed in the environment since the store was begun, one line each."""
        self._plan_sha256 = plan.file_sha256
        self._files = LocalFiles(root)
        self._tables: dict[str, ExampleTable] = {}
        self._calibrations: dict[str, Calibration] | None = None

    @classmethod
    def create(
        cls,
        root: str | Path,
        plan: Plan,
        files: Mapping[str, bytes],
        tables: Mapping[str, WriteTable],
    ) -> "StoreWriter":
        """Begin a store, or go on with the same one.

        plan: without records of files and tables, which are made here. files: blobs by their path under
        `sherl/`. tables: by split, writes the example table to a binary file.
        Raises StoreStale where the store there was made from something else, UsageError where the folder
        holds something else, and what commit.py raises.
        """
        root = Path(root)
        _refuse_foreign(root)
        if set(tables) != set(plan.splits):
            raise InvalidInput(f"tables are given for {sorted(tables)}, the plan has {sorted(plan.splits)}")
        commit.sweep(root)
        commit.settle(root)
        local = LocalFiles(root)
        records = {path: FileRecord(bytes=len(data), sha256=keys.digest_bytes(data)) for path, data in files.items()}
        with ExitStack() as stack:
            spooled: dict[str, commit.Pending] = {}
            stored = ledger.find_plan(local)
            if stored is None:
                spooled = {split: _spool(stack, root, split, tables[split]) for split in sorted(tables)}
                asked = _completed(plan, records, spooled, planned_calibrations(plan, files.get))
                for _, record in calibration_records(plan):
                    commit.publish(root / "sherl" / record.file, [files[record.file]])
                commit.publish(root / PLAN, [asked.to_bytes()], accept=_is_plan)
                stored = ledger.read_plan(local)
            if changed := differences(stored, plan, records):
                raise StoreStale(
                    f"{root}: the store was made from something else: {'; '.join(changed)}. "
                    "Choose another folder for this one, or ask for what the store was made from"
                )
            writer = cls(root, stored, environment_changes(stored, plan))
            writer._complete(stack, files, tables, spooled)
        return writer

    @classmethod
    def open(cls, root: str | Path) -> "StoreWriter":
        """A writer for the units of a store that `create` has begun, in another process."""
        return cls(Path(root), ledger.read_plan(LocalFiles(Path(root))), [])

    def units(self) -> list[Unit]:
        """Every unit of the plan."""
        return self.plan.units()

    def missing(self) -> list[Unit]:
        """Units that are not committed, or whose shards are not there in full size."""
        return [unit for unit in self.units() if self._receipt(unit) is None]

    def committed(self, unit: Unit) -> bool:
        """Whether the unit is committed and its shards are there in full size."""
        return self._receipt(unit) is not None

    def buffer(self, unit: Unit) -> UnitBuffer:
        """Every array of the unit in memory, filled with fill."""
        return UnitBuffer(self.plan, unit, self._known_calibrations())

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
        records = {array.path: self._write_shard(buffer, array) for array in buffer.plans.values()}
        receipt = Receipt(plan=self._plan_sha256, unit=unit.name, split=unit.split, index=unit.index, arrays=records)
        path = self.root / unit.receipt_path
        commit.publish(path, [receipt.to_bytes()], accept=lambda _: self._receipt(unit) is not None)
        committed = self._receipt(unit)
        if committed is None:
            raise StoreCorrupt(f"{path}: shards of the unit vanished while it was written")
        leases.drop(self.root, unit)
        return committed

    def finalize(self) -> Manifest:
        """Publish the manifest. Raises StoreIncomplete where units are missing.

        Where units seem missing while another writer may be at work, looks once more after the seconds for which a
        network file system may not show what that one committed.
        """
        receipts = {unit.name: self._receipt(unit) for unit in self.units()}
        if None in receipts.values() and leases.wait_for_others(self.root):
            receipts = {unit.name: self._receipt(unit) for unit in self.units()}
        present = {name: receipt for name, receipt in receipts.items() if receipt is not None}
        absent = sorted(set(receipts) - set(present))
        if absent:
            raise StoreIncomplete(
                f"{self.root}: {len(absent)} of {len(receipts)} units are missing "
                f"({', '.join(absent[:_SHOWN])}{', ...' if len(absent) > _SHOWN else ''}): extract them first"
            )
        manifest = Manifest(
            features=self.plan.features,
            plan=self._plan_sha256,
            fingerprint=self.plan.fingerprint,
            digest=root_digest(self.plan, present),
            receipts={name: receipt.file_sha256 for name, receipt in present.items()},
        )
        commit.settle(self.root)
        for _ in range(_MANIFEST_ATTEMPTS):
            newest = ledger.newest_manifest(self._files, self._plan_sha256)
            if newest is not None and newest[1] == manifest:
                leases.drop(self.root)
                commit.sweep(self.root, everything=True)
                return manifest
            number = max(ledger.manifest_numbers(self._files), default=0) + 1
            commit.publish(self.root / ledger.manifest_path(number), [manifest.to_bytes()], accept=lambda _: True)
        raise SherlCacheError(f"{self.root}: the manifest could not be published, another process keeps doing so")

    def _known_calibrations(self) -> dict[str, Calibration]:
        if self._calibrations is None:
            self._calibrations = stored_calibrations(self._files, self.plan)
        return self._calibrations

    def _receipt(self, unit: Unit) -> Receipt | None:
        return ledger.whole_receipt(self._files, self.plan, self._plan_sha256, unit)

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
        for split, split_plan in sorted(self.plan.splits.items()):
            table = split_plan.table
            if table is None:
                raise StoreCorrupt(f"{self.root / PLAN}: split {split!r} has no table")
            if self._files.size(table_path(split)) != table.bytes:
                pending = spooled.get(split) or _spool(stack, self.root, split, tables[split])
                self._refuse_other(table_path(split), table, pending.record)
                pending.publish()
        if any(self._files.size(path) != record.bytes for path, record in self.plan.metadata.items()):
            documents = zarr_documents(self.plan, self._known_calibrations())
            for path, record in zarr_records(documents).items():
                self._refuse_other(path, self.plan.metadata.get(path), record)
                commit.publish(self.root / path, [documents[path]])

    def _refuse_other(self, path: str, planned: FileRecord | None, made: FileRecord) -> None:
        if planned != made:
            raise StoreStale(
                f"{self.root / path}: what would be written now differs from the plan, which was "
                "begun with other versions of zarr or pyarrow: begin the store again in another folder"
            )


def _spool(stack: ExitStack, root: Path, split: str, write: WriteTable) -> commit.Pending:
    pending = stack.enter_context(commit.Pending(root / table_path(split)))
    write(cast("BinaryIO", pending))
    return pending


def _completed(
    plan: Plan,
    files: dict[str, FileRecord],
    tables: Mapping[str, commit.Pending],
    calibrations: Mapping[str, Calibration],
) -> Plan:
    splits = {name: split.model_copy(update={"table": tables[name].record}) for name, split in plan.splits.items()}
    metadata = zarr_records(zarr_documents(plan, calibrations))
    features = tuple(sorted({*plan.features, *encoding(plan.encoding).features}))
    whole = plan.model_copy(update={"features": features, "splits": splits, "files": files, "metadata": metadata})
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
