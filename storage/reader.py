"""Reading a store: open it, whole or not at all, and fetch its files, examples and chunks.

Opening checks every size against the receipts, so a missing or cut file is met before the first batch;
content is checked when it is read: each chunk by its crc32c, tables and blobs by their sha256, everything by
`verify(deep=True)`.
"""

import builtins
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from . import ledger
from .calibration import Calibration, stored_calibrations
from .codecs import Encoding, encoding
from .documents import (
    PLAN,
    Manifest,
    Plan,
    Receipt,
    SplitPlan,
    StreamPlan,
    Unit,
    array_path,
    checksums,
    root_digest,
    shard_path,
    table_path,
)
from .errors import DataError, StoreCorrupt, StoreIncomplete, StoreMissing
from .examples import ExampleTable, open_table
from .readers.chunks import ChunkReader
from .readers.local import LocalFiles
from .shards import CRC_BYTES
from .verify import Finding, verify_store

_SHOWN: Final = 3


class Store:
    """A store that was opened; made by `Store.open`."""

    def __init__(
        self,
        root: Path,
        files: LocalFiles,
        plan: Plan,
        manifest: Manifest | None,
        receipts: dict[str, Receipt],
    ) -> None:
        self.root = root
        self.plan = plan
        self.manifest = manifest
        """None for a partial store."""
        self.receipts = receipts
        """Receipts of the committed units, by unit name."""
        self._files = files
        self._chunks = ChunkReader(files, self.encoding, checksums(receipts.values()))
        self._calibrations: dict[str, Calibration] | None = None
        self._plan_sha256 = plan.file_sha256
        self._tables: dict[str, ExampleTable] = {}

    @classmethod
    def open(cls, root: str | Path, allow_partial: bool = False) -> "Store":
        """Open a store; with `allow_partial` also one that is not finished, which then serves its committed
        units.

        Raises StoreMissing, StoreIncomplete (naming the missing units), StoreCorrupt, AccessDenied, or
        StoreNotUsable for a store of a newer version.
        """
        root = Path(root)
        if not root.is_dir():
            raise StoreMissing(f"{root}: there is no such folder, so no store: make one with `sherl-cache extract`")
        files = LocalFiles(root)
        plan = ledger.read_plan(files)
        plan_sha256 = plan.file_sha256
        found = ledger.newest_manifest(files, plan_sha256)
        manifest = None if found is None else found[1]
        units = plan.units()
        if manifest is None:
            receipts = {
                unit.name: receipt
                for unit in units
                if (receipt := ledger.whole_receipt(files, plan, plan_sha256, unit)) is not None
            }
            _refuse_unfinished(root, units, receipts, allow_partial)
        else:
            receipts = {unit.name: _committed(files, plan, plan_sha256, unit, manifest) for unit in units}
            if root_digest(plan, receipts) != manifest.digest:
                raise StoreCorrupt(f"{root}: the receipts do not add up to the digest of the manifest")
        store = cls(root, files, plan, manifest, receipts)
        store._check_sizes()
        return store

    @property
    def digest(self) -> str:
        """Digest over what the store is made from and every committed shard."""
        return root_digest(self.plan, self.receipts)

    @property
    def producer(self) -> Mapping[str, Any]:
        """What the store's maker noted for its readers; storage itself does not read it."""
        return self.plan.producer

    @property
    def fingerprint(self) -> str:
        """Digest of what the store is made from."""
        return self.plan.fingerprint

    @property
    def encoding(self) -> Encoding:
        """How values are stored."""
        return encoding(self.plan.encoding)

    @property
    def complete(self) -> bool:
        """Whether every unit is committed and the manifest is there."""
        return self.manifest is not None

    @property
    def bytes(self) -> int:
        """Bytes of every file of the store."""
        documents = [PLAN, *(unit.receipt_path for unit in self.plan.units() if unit.name in self.receipts)]
        documents += [ledger.manifest_path(number) for number in ledger.manifest_numbers(self._files)]
        sizes = [self._files.size(path) or 0 for path in documents]
        return sum(sizes) + sum(size for _, size in self._planned_files())

    def split(self, name: str) -> SplitPlan:
        """The plan of a split. Raises DataError for one that the store lacks."""
        if name not in self.plan.splits:
            raise DataError(f"{self.root}: has no split {name!r}, only {', '.join(sorted(self.plan.splits))}")
        return self.plan.splits[name]

    def stream_plan(self, split: str, stream: str, taps: tuple[int, ...] = ()) -> StreamPlan:
        """The plan of a stream of a split.

        Raises DataError where the store lacks it, or one of `taps` of it.
        """
        streams = self.split(split).streams
        if stream not in streams:
            raise DataError(f"{self.root}: {split} has no stream {stream!r}, only {', '.join(sorted(streams))}")
        lacking = [tap for tap in taps if tap not in streams[stream].taps]
        if lacking:
            raise DataError(
                f"{self.root}: {split}/{stream} has taps {_taps(streams[stream].taps)}, "
                f"not {_taps(lacking)}: extract a store with those taps"
            )
        return streams[stream]

    def file(self, path: str) -> builtins.bytes:
        """A blob by its path under `sherl/`, digest checked.

        Raises DataError for one that the plan does not name.
        """
        record = self.plan.files.get(path)
        if record is None:
            raise DataError(f"{self.root}: holds no file {path!r}, only {', '.join(sorted(self.plan.files))}")
        data = self._files.read(f"sherl/{path}", record.bytes)
        if data is None or record.file_differs(data):
            raise StoreCorrupt(f"{self.root / 'sherl' / path}: the file is not the one that was committed")
        return data

    def examples(self, split: str) -> ExampleTable:
        """The example table of a split, digest checked."""
        self.split(split)
        if split not in self._tables:
            self._tables[split] = open_table(self._files, self.plan, split)
        return self._tables[split]

    def groups(self, split: str) -> NDArray[np.int64]:
        """Row groups of a split that are committed, ascending."""
        units = [unit for unit in self.split(split).units(split) if unit.name in self.receipts]
        spans = [np.arange(unit.first_group, unit.first_group + unit.groups) for unit in units]
        return np.concatenate(spans).astype(np.int64) if spans else np.empty(0, np.int64)

    def chunk(self, split: str, stream: str, tap: int, group: int) -> NDArray[Any]:
        """The rows of one row group of a tap: [chunk_rows, stored_width] as stored, crc32c checked; see `decode`."""
        plan = self.stream_plan(split, stream, (tap,))
        if not 0 <= group < self.split(split).groups:
            raise DataError(f"{self.root}: {split} has {self.split(split).groups} row groups, no number {group}")
        raw = np.empty(self.chunk_bytes(plan) + CRC_BYTES, dtype=np.uint8)
        return self.read_chunk(split, stream, tap, group, raw, verify=True).copy()

    def chunk_bytes(self, plan: StreamPlan) -> int:
        """Bytes of a chunk of a stream in memory, without its checksum."""
        return plan.chunk_rows * plan.stored_width * self.encoding.itemsize

    def reading_bytes(self, plan: StreamPlan) -> int:
        """Bytes that `read_chunk` holds while it reads a chunk: `out`, and the compressed chunk where it is one."""
        chunk = self.chunk_bytes(plan)
        compressed = self.encoding.stored_bytes(chunk) + CRC_BYTES if self.encoding.compressed else 0
        return chunk + CRC_BYTES + compressed

    def calibration(self, split: str, stream: str) -> Calibration | None:
        """What the rows of an int8 stream are decoded with: `decode(rows, encoding, calibration.tap(number))`; None for
        other encodings.
        """
        record = self.stream_plan(split, stream).calibration
        if record is None:
            return None
        if self._calibrations is None:
            self._calibrations = stored_calibrations(self._files, self.plan)
        return self._calibrations[record.file]

    def read_chunk(
        self, split: str, stream: str, tap: int, group: int, out: NDArray[np.uint8], *, verify: bool
    ) -> NDArray[Any]:
        """Read a chunk with its checksum into `out` [chunk bytes + 4]; a view of its rows [chunk_rows,
        stored_width].

        Raises StoreCorrupt, naming the tap, the shard, the chunk and its examples.
        """
        split_plan = self.plan.splits[split]
        plan = split_plan.streams[stream]
        unit, slot = divmod(group, split_plan.groups_per_unit)
        array = array_path(split, stream, tap)
        path = shard_path(array, unit)
        if f"{split}-{unit:05d}" not in self.receipts:
            raise StoreIncomplete(f"{self.root / path}: unit {split}-{unit:05d} is not committed")
        try:
            data = self._chunks.read(path, slot, split_plan.groups_per_unit, out, verify=verify)
        except StoreCorrupt as error:
            raise StoreCorrupt(
                f"{array}: {error} (row group {group}, {self.describe_group(split, group)}); "
                "`sherl-cache verify --deep` lists everything that is damaged"
            ) from None
        return data.view(self.encoding.dtype).reshape(plan.chunk_rows, plan.stored_width)

    def describe_group(self, split: str, group: int) -> str:
        """The examples of a row group, in words: written order and source ids."""
        table = self.examples(split)
        first, stop = int(table.first_examples[group]), int(table.first_examples[group + 1])
        ids = table.source_ids(first, min(first + _SHOWN, stop))
        rest = ", ..." if stop - first > _SHOWN else ""
        return f"examples {first} to {stop - 1}: {', '.join(map(repr, ids))}{rest}"

    def verify(self, deep: bool = False) -> list[Finding]:
        """Everything that is missing or damaged; see `verify_store`."""
        return verify_store(self.root, deep=deep)

    def _planned_files(self) -> list[tuple[str, int]]:
        """Path and bytes of every file of tables, blobs, zarr metadata and committed shards."""
        plan = self.plan
        sizes = [(path, record.bytes) for path, record in plan.metadata.items()]
        sizes += [(f"sherl/{path}", record.bytes) for path, record in plan.files.items()]
        sizes += [(table_path(name), split.table.bytes) for name, split in plan.splits.items() if split.table]
        for receipt in self.receipts.values():
            sizes += [(record.path, record.bytes) for record in receipt.arrays.values()]
        return sizes

    def _check_sizes(self) -> None:
        for path, planned in self._planned_files():
            size = self._files.size(path)
            if size != planned:
                found = "is missing" if size is None else f"has {size:,} bytes, {planned:,} were committed"
                if size is None and self.manifest is None:
                    raise StoreIncomplete(f"{self.root / path}: {found}: run extract again to complete the store")
                raise StoreCorrupt(f"{self.root / path}: the file {found}")


def _refuse_unfinished(root: Path, units: list[Unit], receipts: dict[str, Receipt], allow_partial: bool) -> None:
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


def _committed(files: LocalFiles, plan: Plan, plan_sha256: str, unit: Unit, manifest: Manifest) -> Receipt:
    path = files.root / unit.receipt_path
    receipt = ledger.read_receipt(files, plan, plan_sha256, unit)
    if receipt is None:
        raise StoreCorrupt(f"{path}: the receipt is missing, the manifest names it")
    if receipt.file_sha256 != manifest.receipts.get(unit.name):
        raise StoreCorrupt(f"{path}: the receipt is not the one that the manifest names")
    return receipt


def _taps(taps: tuple[int, ...] | list[int]) -> str:
    return ", ".join(f"h{tap:02d}" for tap in taps)
