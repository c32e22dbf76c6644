"""Reading a store: open it, whole or not at all, and fetch its files, examples and chunks.

Opening (opening.py) looks at every receipt and every size, so a missing or cut file is met before the first batch; in a
store of very many units, at those of a unit when something of it is first read. Content is checked when it is read: each
chunk by its crc32c, tables and blobs by their sha256, everything by `verify(deep=True)`.
"""

import builtins
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from . import ledger
from .calibration import Calibration, stored_calibrations
from .codecs import Encoding, encoding
from .documents import SplitPlan, StreamPlan, array_path, plan_path, root_digest, shard_path
from .errors import DataError, StoreCorrupt, StoreIncomplete
from .examples import ExampleTable, open_table
from .notebook import bytes_text, facts_html
from .opening import Snapshot, open_snapshot
from .place import Place, open_files, parse_place
from .readers.chunks import ChunkReader
from .readers.contract import Files
from .readers.pieces import Memory, Read
from .shards import CRC_BYTES
from .verify import Finding, verify_store

_SHOWN: Final = 3


class Store:
    """A store that was opened; made by `Store.open`."""

    def __init__(self, root: Place, files: Files, snapshot: Snapshot) -> None:
        self.root = root
        self.plan = snapshot.chain.head
        self.chain = snapshot.chain
        """The plans up to the one that this store is opened with."""
        self.manifest = snapshot.manifest
        """None for a partial store."""
        self.receipts = snapshot.receipts
        """Receipts of the committed units, by unit name: each is read when it is asked for, and not kept."""
        self._snapshot = snapshot
        self._files = files
        self._chunks = ChunkReader(files, self.encoding, self.receipts.checksums)
        self._calibrations: dict[str, Calibration] | None = None
        self._tables: dict[str, ExampleTable] = {}

    @classmethod
    def open(cls, root: str | Place, allow_partial: bool = False, snapshot: int | None = None) -> "Store":
        """Open a store: a folder, or `s3://bucket/prefix` and the other places of place.py. With `allow_partial`
        also one that is not finished, which then serves its committed units.

        A store that has grown, or is growing, is opened as it was when it was last whole. snapshot: number of the
        manifest to open it with instead of the newest; `gc` removes those that are superseded.

        Raises StoreMissing, StoreIncomplete (naming the missing units), StoreCorrupt, AccessDenied, or
        StoreNotUsable for a store of a newer version.
        """
        root = parse_place(root)
        files = open_files(root)
        return cls(root, files, open_snapshot(root, files, allow_partial, snapshot))

    @property
    def digest(self) -> str:
        """Digest over what the store is made from and every committed shard."""
        return self.manifest.digest if self.manifest else root_digest(self.plan, self.receipts)

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
    def growing(self) -> bool:
        """Whether something was being added when the store was opened; the same extract command finishes that."""
        return bool(self._snapshot.newer)

    def _repr_html_(self) -> str:
        state = "complete" if self.complete else "units are missing"
        names = {key: _named(self.producer.get(key)) for key in ("model", "data")}
        facts = {**names, "state": f"{state}, growing" if self.growing else state, "size": bytes_text(self.bytes)}
        facts["digest"] = self.digest if self.complete else None
        return facts_html(self.root, facts.items(), self.plan._repr_html_())

    @property
    def bytes(self) -> int:
        """Bytes of every file of the store, without what is being added to it."""
        documents = [plan_path(number) for number in range(1, len(self.chain.plans) + 1)]
        documents += [piece.path for name in self.receipts for piece in self.chain.pieces[name]]
        documents += [ledger.manifest_path(number) for number in ledger.manifest_numbers(self._files)]
        sizes = [self._files.size(path) or 0 for path in (*documents, *self.plan.metadata)]
        return sum(sizes) + sum(size for _, size in self._snapshot.files()) + sum(self.array_bytes.values())

    @property
    def array_bytes(self) -> dict[str, int]:
        """Bytes of the committed shards of each array, by its path."""
        return dict(self.manifest.arrays) if self.manifest else self._snapshot.tally().arrays

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
            raise StoreCorrupt(f"{self._files.place(f'sherl/{path}')}: the file is not the one that was committed")
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
        raw = np.empty(self.chunk_bytes(plan, tap) + CRC_BYTES, dtype=np.uint8)
        return self.read_chunk(split, stream, tap, group, raw, verify=True).copy()

    @property
    def files(self) -> Files:
        """The files of the store, as its place gives them."""
        return self._files

    def chunk_bytes(self, plan: StreamPlan, tap: int | None = None) -> int:
        """Bytes of a chunk of a tap, or of the widest, in memory, without its checksum."""
        width = max(map(plan.stored_width, plan.taps)) if tap is None else plan.stored_width(tap)
        return plan.chunk_rows * width * self.encoding.itemsize

    def reading_bytes(self, plan: StreamPlan, tap: int) -> int:
        """Bytes that `read_chunk` holds while it reads a chunk: `out`, the compressed chunk where it is one, and what a
        request to its place holds.
        """
        chunk = self.chunk_bytes(plan, tap)
        stored = self.encoding.stored_bytes(chunk) + CRC_BYTES if self.encoding.compressed else chunk + CRC_BYTES
        beside = stored if self.encoding.compressed else 0
        return chunk + CRC_BYTES + beside + self._files.copies * stored

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
        plan = self.plan.splits[split].streams[stream]
        path, slot, slots = self._shard(split, stream, tap, group)
        try:
            data = self._chunks.read(path, slot, slots, out, verify=verify)
        except StoreCorrupt as error:
            raise self._corrupt(split, stream, tap, group, error) from None
        return data.view(self.encoding.dtype).reshape(plan.chunk_rows, plan.stored_width(tap))

    @property
    def scatters(self) -> bool:
        """Whether `scatter_chunk` can be used; else every chunk goes through `read_chunk`."""
        return self._chunks.scatters

    def scatter_chunk(
        self, split: str, stream: str, tap: int, group: int, reads: Iterable[Read], out: Memory, scratch: Memory
    ) -> None:
        """Parts of a chunk straight to where they belong in `out`, what is not wanted between them to `scratch`; its
        checksum is not looked at. Errors as of `read_chunk`.
        """
        chunk_bytes = self.chunk_bytes(self.plan.splits[split].streams[stream], tap)
        path, slot, slots = self._shard(split, stream, tap, group)
        try:
            self._chunks.scatter(path, slot, slots, chunk_bytes, reads, out, scratch)
        except StoreCorrupt as error:
            raise self._corrupt(split, stream, tap, group, error) from None

    def scatter_checked(
        self,
        split: str,
        stream: str,
        tap: int,
        group: int,
        buffers: list[memoryview],
        end: NDArray[np.uint8],
    ) -> None:
        """A whole chunk to where its parts belong, one buffer after another, and its checksum to `end` [4].

        Errors as of `read_chunk`, where the checksum does not match too; `buffers` then hold what must not be used.
        """
        chunk_bytes = self.chunk_bytes(self.plan.splits[split].streams[stream], tap)
        path, slot, slots = self._shard(split, stream, tap, group)
        try:
            self._chunks.scatter_checked(path, slot, slots, chunk_bytes, buffers, end)
        except StoreCorrupt as error:
            raise self._corrupt(split, stream, tap, group, error) from None

    def will_need(self, split: str, stream: str, tap: int, group: int) -> bool:
        """Tell the system that a chunk is read soon, and whether it has been in the page cache; never fails."""
        split_plan = self.plan.splits[split]
        unit, slot = divmod(group, split_plan.groups_per_unit)
        path = shard_path(array_path(split, stream, tap), unit)
        return self._chunks.will_need(path, slot, self.chunk_bytes(split_plan.streams[stream], tap))

    def keeping(self) -> AbstractContextManager[None]:
        """Keep shards that were read open meanwhile, which saves looking them up for every chunk."""
        return self._chunks.keeping()

    def _shard(self, split: str, stream: str, tap: int, group: int) -> tuple[str, int, int]:
        """The shard of a chunk, its slot there and the shard's slots."""
        slots = self.plan.splits[split].groups_per_unit
        unit, slot = divmod(group, slots)
        path = shard_path(array_path(split, stream, tap), unit)
        if f"{split}-{unit:05d}" not in self.receipts:
            raise StoreIncomplete(f"{self.root / path}: unit {split}-{unit:05d} is not committed")
        return path, slot, slots

    def _corrupt(self, split: str, stream: str, tap: int, group: int, error: StoreCorrupt) -> StoreCorrupt:
        """What is wrong with a chunk, with the names of what it holds."""
        return StoreCorrupt(
            f"{array_path(split, stream, tap)}: {error} (row group {group}, {self.describe_group(split, group)}); "
            "`sherl-cache verify --deep` lists everything that is damaged"
        )

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


def _taps(taps: tuple[int, ...] | list[int]) -> str:
    return ", ".join(f"h{tap:02d}" for tap in taps)


def _named(described: Any) -> Any:
    """The name in what a store's maker noted of a model or of data, where there is one."""
    return described.get("name") if isinstance(described, Mapping) else None
