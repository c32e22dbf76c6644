"""Looking at a store without using it: what is missing and what is damaged, down to the chunk and its
examples.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import ledger
from .codecs import encoding
from .documents import (
    DOCUMENT_BYTES,
    PLAN,
    ArrayPlan,
    Document,
    FileRecord,
    Manifest,
    Plan,
    Receipt,
    ShardRecord,
    Unit,
    checksums,
    root_digest,
    table_path,
)
from .errors import SherlCacheError, StoreCorrupt
from .examples import ExampleTable, open_table
from .readers.chunks import ChunkReader
from .readers.local import LocalFiles

_SHOWN_EXAMPLES = 8


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a store.

    path: of the file, in the store. tap: the array's path. chunk: the row group. examples: source ids of the
    first few examples touched, or their place in written order where the table cannot be read.
    """

    kind: Literal["missing", "corrupt"]
    path: str
    problem: str
    unit: str | None = None
    tap: str | None = None
    chunk: int | None = None
    examples: tuple[str, ...] = ()


def verify_store(root: str | Path, deep: bool = False) -> list[Finding]:
    """Everything that is missing or damaged in a store, finished or not; empty for a whole one.

    Sizes of all files are checked, with `deep` the sha256 of every file and the crc32c of every chunk. Raises
    StoreMissing where there is no store, StoreNotUsable for a newer format, AccessDenied.
    """
    files = LocalFiles(Path(root))
    try:
        plan = ledger.read_plan(files)
    except StoreCorrupt as error:
        return [Finding("corrupt", PLAN, str(error))]
    return _Verification(files, plan, deep).run()


class _Verification:
    def __init__(self, files: LocalFiles, plan: Plan, deep: bool) -> None:
        self.files = files
        self.checksums: dict[str, tuple[int, ...]] = {}
        self.chunks = ChunkReader(files, encoding(plan.encoding), self.checksums)
        self.plan = plan
        self.plan_sha256 = plan.file_sha256
        self.deep = deep
        self.findings: list[Finding] = []
        self.tables: dict[str, ExampleTable | None] = {}
        self.arrays = {array.path: array for array in plan.arrays()}

    def run(self) -> list[Finding]:
        self._check_document(PLAN, self.plan)
        for path, record in sorted(self._records().items()):
            self._check_file(path, record)
        receipts = {unit.name: self._check_unit(unit) for unit in self.plan.units()}
        self._check_manifest({name: receipt for name, receipt in receipts.items() if receipt is not None})
        return self.findings

    def _records(self) -> dict[str, FileRecord]:
        blobs = {f"sherl/{path}": record for path, record in self.plan.files.items()}
        splits = self.plan.splits.items()
        tables = {table_path(name): split.table for name, split in splits if split.table is not None}
        return {**self.plan.metadata, **blobs, **tables}

    def _check_file(self, path: str, record: FileRecord | ShardRecord, unit: Unit | None = None) -> bool:
        """Whether a file has its size and, when deep, its content; else notes a finding."""
        name = None if unit is None else unit.name
        tap = path.partition("/c/")[0] if unit else None
        try:
            size = self.files.size(path)
            if size is None:
                kind: Literal["missing", "corrupt"] = "missing" if unit is None else "corrupt"
                self._note(kind, path, "the file is missing", name, tap)
                return False
            if size != record.bytes:
                self._note("corrupt", path, f"{size:,} bytes, {record.bytes:,} were committed", name, tap)
                return False
            if self.deep and self.files.digest(path)[1] != record.sha256:
                if unit is None or not self._damaged_chunks(path, unit):
                    self._note("corrupt", path, "its content is not what was committed", name, tap)
                return False
        except StoreCorrupt as error:
            self._note("corrupt", path, str(error), name, tap)
            return False
        return True

    def _check_unit(self, unit: Unit) -> Receipt | None:
        try:
            receipt = ledger.read_receipt(self.files, self.plan, self.plan_sha256, unit)
        except StoreCorrupt as error:
            self._note("corrupt", unit.receipt_path, str(error), unit.name, None)
            return None
        if receipt is None:
            self._note("missing", unit.receipt_path, "the unit is not committed", unit.name, None)
            return None
        self._check_document(unit.receipt_path, receipt, unit.name)
        self.checksums.update(checksums([receipt]))
        for record in receipt.arrays.values():
            self._check_file(record.path, record, unit)
        return receipt

    def _check_manifest(self, receipts: dict[str, Receipt]) -> None:
        found = ledger.newest_manifest(self.files, self.plan_sha256)
        if found is None:
            kind: Literal["missing", "corrupt"] = "corrupt" if ledger.manifest_numbers(self.files) else "missing"
            self._note(kind, ledger.manifest_path(1), "there is no valid manifest", None, None)
            if ledger.names_other_plan(self.files, self.plan_sha256):
                self._note("corrupt", PLAN, "it is not the plan that the manifest names", None, None)
            return
        number, manifest = found
        self._check_document(ledger.manifest_path(number), manifest)
        if not _matches(manifest, receipts, self.plan):
            problem = "the receipts are not those that the manifest names"
            self._note("corrupt", ledger.manifest_path(number), problem, None, None)
        for unit in self.plan.units():
            receipt = receipts.get(unit.name)
            if receipt is not None and receipt.file_sha256 != manifest.receipts.get(unit.name):
                problem = "the receipt is not the one that the manifest names"
                self._note("corrupt", unit.receipt_path, problem, unit.name, None)

    def _check_document(self, path: str, document: Document, unit: str | None = None) -> None:
        """Note a document whose bytes are not its canonical ones, though they mean the same."""
        if self.deep and self.files.read(path, DOCUMENT_BYTES) != document.to_bytes():
            self._note("corrupt", path, "its bytes are not those that were committed", unit, None)

    def _damaged_chunks(self, path: str, unit: Unit) -> bool:
        """Note every chunk of a shard whose checksum does not match; False where none or the index is
        damaged.
        """
        array = self.arrays[path.partition("/c/")[0]]
        plan = array.stream_plan
        chunk_bytes = plan.chunk_rows * plan.stored_width * encoding(self.plan.encoding).itemsize
        damaged = self.chunks.damaged(path, unit.groups, array.split_plan.groups_per_unit, chunk_bytes)
        for slot, problem in damaged or ():
            self._note_chunk(path, unit, array, unit.first_group + slot, problem)
        return bool(damaged)

    def _note_chunk(self, path: str, unit: Unit, array: ArrayPlan, group: int, problem: str) -> None:
        first = sum(array.split_plan.group_examples[:group])
        stop = first + array.split_plan.group_examples[group]
        table = self._table(array.split)
        place = f"{first} to {stop - 1} of the written order"
        ids = None if table is None else table.source_ids(first, min(stop, first + _SHOWN_EXAMPLES))
        self.findings.append(
            Finding(
                "corrupt",
                path,
                f"{problem} (row group {group}, examples {place})",
                unit.name,
                array.path,
                group,
                (place,) if ids is None else tuple(ids),
            )
        )

    def _table(self, split: str) -> ExampleTable | None:
        if split not in self.tables:
            try:
                self.tables[split] = open_table(self.files, self.plan, split)
            except SherlCacheError:
                self.tables[split] = None
        return self.tables[split]

    def _note(
        self, kind: Literal["missing", "corrupt"], path: str, problem: str, unit: str | None, tap: str | None
    ) -> None:
        self.findings.append(Finding(kind, path, problem, unit, tap))


def _matches(manifest: Manifest, receipts: dict[str, Receipt], plan: Plan) -> bool:
    named = {name: receipt.file_sha256 for name, receipt in receipts.items()}
    if manifest.fingerprint != plan.fingerprint:
        return False
    return manifest.receipts == named and manifest.digest == root_digest(plan, receipts)
