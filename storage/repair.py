"""Repairing a store: exactly what `verify --deep` found damaged is made again; nothing that is whole is touched.

A damaged file is moved aside and made again: shards from the values of their unit, tables, blobs and zarr metadata
from what the plan says of them. Where the new bytes are the old ones, receipts and manifest stay as they are; where
values come out otherwise (another machine, other versions) the unit gets a new receipt and the store a new manifest.
A plan is made again first, and only as the very plan that manifests, receipts or the next plan name (broken_plans.py).
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, cast

from . import commit, ledger
from .arrays import zarr_documents
from .beginning import WriteTable
from .broken_plans import restore_plan
from .buffer import UnitBuffer
from .calibration import stored_calibrations
from .documents import PLAN, FileRecord, Manifest, Plan, Receipt, Unit, shard_path
from .errors import InvalidInput, StoreCorrupt
from .readers.local import LocalFiles
from .verify import Finding, verify_store
from .writer import StoreWriter

Make = Callable[[Unit], UnitBuffer]

_PLANS: Final = (PLAN, "sherl/plan-")
_MANIFESTS: Final = "sherl/manifest-"


@dataclass
class Repair:
    """What was made again: paths of files, and names of units that were run again."""

    files: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Units whose values came out otherwise than those that were committed."""
    manifest: Manifest | None = None


def repair_store(
    root: str | Path,
    findings: Iterable[Finding],
    make: Make,
    *,
    files: Mapping[str, bytes] | None = None,
    tables: Mapping[str, WriteTable] | None = None,
    plan: Plan | None = None,
) -> Repair:
    """Make again what `findings` (of `verify_store(root, deep=True)`) name, and publish a manifest where one is needed.

    make: gives a unit's values, in a buffer that holds every array of it. files, tables: as for `StoreWriter.create`;
    needed where blobs or example tables are damaged. plan: as for the `StoreWriter.create` that made the plan that is
    damaged; needed then, with all files and tables. Raises StoreCorrupt for damage that cannot be repaired.
    """
    root = Path(root)
    found, done = list(findings), Repair()
    tried: set[str] = set()
    while broken := {finding.path for finding in found if finding.path.startswith(_PLANS)} - tried:
        path = min(broken, key=_number)
        tried.add(path)
        if restore_plan(root, _number(path), plan, files or {}, tables or {}):
            done.files.append(path)
        found = verify_store(root, deep=True)  # what was said by a wrong plan is void
    found = [finding for finding in found if finding.path not in tried]
    for path in dict.fromkeys(finding.path for finding in found if finding.path.startswith(_MANIFESTS)):
        commit.set_aside(root / path)
        done.files.append(path)
    found = [finding for finding in found if not finding.path.startswith(_MANIFESTS)]
    writer = StoreWriter.open(root)
    work = _Repair(root, writer, done)
    for path in dict.fromkeys(finding.path for finding in found if finding.unit is None):
        work.file(path, files or {}, tables or {})
    units = {unit.name: unit for unit in writer.units()}
    for name in dict.fromkeys(
        finding.unit for finding in found if finding.unit is not None and finding.kind == "corrupt"
    ):
        work.unit(units[name], {finding.path for finding in found if finding.unit == name}, make)
    if not writer.missing():
        if work.done.changed:  # no older manifest can be right any more
            for number in ledger.manifest_numbers(work.files):
                commit.set_aside(root / ledger.manifest_path(number))
        work.done.manifest = writer.finalize()
    return work.done


class _Repair:
    def __init__(self, root: Path, writer: StoreWriter, done: Repair) -> None:
        self.root, self.writer, self.done = root, writer, done
        self.files = LocalFiles(root)
        newest = ledger.newest_manifest(self.files, writer.chain.digests[-1])
        self.named: Mapping[str, str] = {} if newest is None else newest[1].receipts

    def file(self, path: str, blobs: Mapping[str, bytes], tables: Mapping[str, WriteTable]) -> None:
        """Make a file that belongs to no unit."""
        plan = self.writer.plan
        table = next((table for table in plan.tables() if table.path == path), None)
        if path in plan.metadata:
            self._metadata(path)
        elif table is not None and table.record is not None:
            with ExitStack() as stack:
                write = tables.get(table.name)
                if write is None:
                    raise InvalidInput(f"{self.root / path}: the example table is damaged; give what writes it again")
                pending = stack.enter_context(commit.Pending(self.root / path))
                write(cast("BinaryIO", pending))
                self._refuse_other(path, table.record, pending.record)
                commit.set_aside(self.root / path)
                pending.publish()
        elif path.removeprefix("sherl/") in plan.files:
            data = blobs.get(path.removeprefix("sherl/"))
            if data is None:
                raise InvalidInput(f"{self.root / path}: the file is damaged; give its bytes to have it again")
            if plan.files[path.removeprefix("sherl/")].file_differs(data):
                raise StoreCorrupt(f"{self.root / path}: what is there to repair it is another file")
            commit.set_aside(self.root / path)
            commit.publish(self.root / path, [data])
        else:
            raise StoreCorrupt(f"{self.root / path}: cannot be repaired")
        self.done.files.append(path)

    def unit(self, unit: Unit, damaged: set[str], make: Make) -> None:
        """Make the damaged shards of a unit, and its receipts where they are damaged."""
        pieces = self.writer.chain.pieces[unit.name]
        receipts = {p: None if p.path in damaged else _receipt(self.files, p) for p in pieces}
        buffer = make(unit)
        if lacking := {path for piece in pieces for path in piece.arrays} - {p.path for p in buffer.plans.values()}:
            raise InvalidInput(f"the buffer of unit {unit.name} does not hold {', '.join(sorted(lacking))}")
        for piece, receipt in receipts.items():
            records = {} if receipt is None else dict(receipt.arrays)
            for array in piece.arrays:
                path = shard_path(array, unit.index)
                if receipt is not None and path not in damaged:
                    continue
                commit.set_aside(self.root / path)
                record = self.writer.write_shard(buffer, array)
                records[array] = record
                self.done.files.append(path)
            again = Receipt(plan=piece.plan_sha256, unit=unit.name, split=unit.split, index=unit.index, arrays=records)
            if (
                self.named.get(piece.name, again.file_sha256) != again.file_sha256
                and unit.name not in self.done.changed
            ):
                self.done.changed.append(unit.name)
            if receipt != again:
                commit.replace(self.root / piece.path, again.to_bytes())
                self.done.files.append(piece.path)
        self.done.units.append(unit.name)

    def _metadata(self, path: str) -> None:
        place, *_ = ledger.newest_snapshot(self.files, self.writer.chain) or (0,)
        plan: Plan = self.writer.chain.plans[place]
        made = zarr_documents(plan, stored_calibrations(self.files, plan))[path]
        if plan.metadata[path].file_differs(made):
            raise StoreCorrupt(f"{self.root / path}: this version of zarr would write it otherwise: it stays as it is")
        commit.set_aside(self.root / path)
        commit.publish(self.root / path, [made])

    def _refuse_other(self, path: str, planned: FileRecord, made: FileRecord) -> None:
        if planned != made:
            raise StoreCorrupt(
                f"{self.root / path}: what would be written now is not what was committed: the data or the version of "
                "pyarrow changed"
            )


def _number(path: str) -> int:
    """Number of the plan at a path."""
    return 1 if path == PLAN else int(path.removeprefix(_PLANS[1]).removesuffix(".json"))


def _receipt(files: LocalFiles, piece: ledger.Piece) -> Receipt | None:
    try:
        held = ledger.read_receipt(files, piece)
    except StoreCorrupt:
        return None
    return None if held is None else held.receipt
