"""Looking at a store without using it: what is missing and what is damaged, down to the chunk and its
examples.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from . import ledger
from .broken_plans import find_broken_plan
from .codecs import encoding
from .documents import (
    DOCUMENT_BYTES,
    PLAN,
    ArrayPlan,
    Document,
    FileRecord,
    Manifest,
    Shard,
    ShardRecord,
    Tally,
    Unit,
    plan_path,
)
from .errors import SherlCacheError, StoreCorrupt
from .examples import ExampleTable, open_table
from .place import Place, open_files, parse_place
from .readers.chunks import ChunkReader
from .readers.contract import Files

_SHOWN_EXAMPLES = 8
_OTHER_BYTES = "its bytes are not those that were committed"


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


def verify_store(root: str | Place, deep: bool = False) -> list[Finding]:
    """Everything that is missing or damaged in a store, finished or not; empty for a whole one.

    Sizes of all files are checked, with `deep` the sha256 of every file and the crc32c of every chunk. Raises
    StoreMissing where there is no store, StoreNotUsable for a newer format, AccessDenied.
    """
    files = open_files(parse_place(root))
    broken = find_broken_plan(files)
    if broken is not None and not (broken.missing and broken.path == PLAN):
        return [Finding("corrupt", broken.path, broken.problem)]
    return _Verification(files, ledger.read_chain(files), deep).run()


class _Committed(NamedTuple):
    """What is remembered of a receipt: the digest of its file, and its shards."""

    sha256: str
    shards: tuple[Shard, ...]


class _Verification:
    def __init__(self, files: Files, chain: ledger.Chain, deep: bool) -> None:
        plan = chain.head
        self.files = files
        self.checksums: dict[str, tuple[int, ...]] = {}
        """Of the chunks of the unit that is being looked at, by the path of each shard."""
        self.chunks = ChunkReader(files, encoding(plan.encoding), self.checksums.get)
        self.chain = chain
        self.plan = plan
        self.deep = deep
        self.findings: list[Finding] = []
        self.tables: dict[str, ExampleTable | None] = {}
        self.arrays = {array.path: array for array in plan.arrays()}
        manifests = [found for _, found in ledger.manifests(files) if found.plan in chain.digests]
        self.named = {name for manifest in manifests for name in manifest.receipts}

    def run(self) -> list[Finding]:
        for number, plan in enumerate(self.chain.plans, 1):
            self._check_document(plan_path(number), plan)
        for path, record in sorted(self._records().items()):
            self._check_file(path, record)
        self._check_metadata()
        pieces = [piece for held in self.chain.pieces.values() for piece in held]
        receipts = {piece.name: self._check_piece(piece) for piece in pieces}
        self._check_manifests({name: receipt for name, receipt in receipts.items() if receipt is not None})
        return self.findings

    def _records(self) -> dict[str, FileRecord]:
        blobs = {f"sherl/{path}": record for path, record in self.plan.files.items()}
        tables = {table.path: table.record for table in self.plan.tables() if table.record is not None}
        return {**blobs, **tables}

    def _check_metadata(self) -> None:
        """The zarr metadata is that of the last plan that is finished; while a newer one is being finished, its own."""
        place, *_ = ledger.newest_snapshot(self.files, self.chain) or (0,)
        now, *later = self.chain.plans[place:]
        for path, record in sorted(now.metadata.items()):
            allowed = [plan.metadata[path] for plan in later if path in plan.metadata]
            if not any(self._holds(path, other) for other in allowed):
                self._check_file(path, record)

    def _holds(self, path: str, record: FileRecord) -> bool:
        try:
            return self.files.size(path) == record.bytes and self.files.digest(path)[1] == record.sha256
        except StoreCorrupt:
            return False

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

    def _check_piece(self, piece: ledger.Piece) -> _Committed | None:
        unit = piece.unit
        try:
            held = ledger.read_receipt(self.files, piece)
        except StoreCorrupt as error:
            self._note("corrupt", piece.path, str(error), unit.name, None)
            return None
        if held is None:
            if piece.name in self.named:
                self._note("corrupt", piece.path, "the receipt is missing, a manifest names it", unit.name, None)
            else:
                self._note("missing", piece.path, "the unit is not committed", unit.name, None)
            return None
        sha256 = held.receipt.file_sha256
        if sha256 != held.sha256:
            self._note("corrupt", piece.path, _OTHER_BYTES, unit.name, None)
        self.checksums.clear()
        self.checksums.update({record.path: record.crc32c for record in held.receipt.arrays.values()})
        for record in held.receipt.arrays.values():
            self._check_file(record.path, record, unit)
        return _Committed(sha256, tuple(held.receipt.shards()))

    def _check_manifests(self, receipts: dict[str, _Committed]) -> None:
        """Every manifest must be whole and name what is there; one of the last plan must be among them."""
        finished = False
        strange: list[str] = []
        numbers = ledger.manifest_numbers(self.files)
        for number in numbers:
            path = ledger.manifest_path(number)
            try:
                manifest = ledger.read_manifest(self.files, number)
            except StoreCorrupt as error:
                self._note("corrupt", path, str(error), None, None)
                continue
            if manifest is None:
                continue
            self._check_document(path, manifest)
            if manifest.plan not in self.chain.digests:
                strange.append(path)
                continue
            chain = self.chain.upto(self.chain.digests.index(manifest.plan))
            finished = finished or chain is self.chain
            self._check_named(number, manifest, receipts, chain)
        if strange and len(strange) == len(numbers):
            self._note("corrupt", plan_path(len(self.chain.plans)), "no manifest names this plan", None, None)
        for path in strange:
            self._note("corrupt", path, "the manifest belongs to another plan", None, None)
        if not finished:
            whole = len(self.chain.plans) == 1 and bool(numbers)
            kind: Literal["missing", "corrupt"] = "corrupt" if whole else "missing"
            path = ledger.manifest_path(max(numbers, default=0) + 1)
            self._note(kind, path, "there is no valid manifest of the last plan", None, None)

    def _check_named(
        self, number: int, manifest: Manifest, receipts: dict[str, _Committed], chain: ledger.Chain
    ) -> None:
        """A manifest and the receipts that it names; where both disagree, the digest over all may tell which is right."""
        pieces = [piece for held in chain.pieces.values() for piece in held]
        present = [piece for piece in pieces if piece.name in receipts]
        other = [p for p in present if receipts[p.name].sha256 != manifest.receipts.get(p.name)]
        tally = Tally(chain.head)
        for name, held in sorted(chain.pieces.items()):
            if all(piece.name in receipts for piece in held):
                tally.add(name, (shard for piece in held for shard in receipts[piece.name].shards))
        adds_up = (manifest.digest, manifest.arrays) == (tally.digest, tally.arrays)
        for piece in other:
            problem = f"the receipt is not the one that {ledger.manifest_path(number)} names"
            self._note("corrupt", piece.path, problem, piece.unit.name, None)
        if (other and adds_up) or (
            (manifest.fingerprint, manifest.features) != (chain.head.fingerprint, chain.head.features)
            or set(manifest.receipts) != {p.name for p in pieces}
            or (len(present) == len(pieces) and not adds_up and not other)
        ):
            problem = "the receipts are not those that the manifest names"
            self._note("corrupt", ledger.manifest_path(number), problem, None, None)

    def _check_document(self, path: str, document: Document) -> None:
        """Note a document whose bytes are not its canonical ones, though they mean the same."""
        if self.deep and self.files.read(path, DOCUMENT_BYTES) != document.to_bytes():
            self._note("corrupt", path, _OTHER_BYTES, None, None)

    def _damaged_chunks(self, path: str, unit: Unit) -> bool:
        """Note every chunk of a shard whose checksum does not match; False where none or the index is
        damaged.
        """
        array = self.arrays[path.partition("/c/")[0]]
        chunk_bytes = array.stream_plan.chunk_rows * array.stored_width * encoding(self.plan.encoding).itemsize
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
