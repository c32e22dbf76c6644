"""Beginning a store, or letting it grow: the plan, then the blobs, tables and zarr metadata that it names.

Every step is idempotent. Of several writers that begin one store together the first to publish the plan wins, and
the others go on with its plan.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final, cast

from . import commit, keys, leases, ledger
from .arrays import zarr_documents, zarr_records
from .calibration import calibration_records, planned_calibrations
from .checks import refuse_other
from .documents import PLAN, FileRecord, Plan, TablePlan, parse, plan_path
from .errors import InvalidInput, SherlCacheError, StoreCorrupt, StoreStale, UsageError
from .growth import grown, with_tables
from .metadata import complete_metadata
from .readers.local import LocalFiles
from .stale import differences

WriteTable = Callable[[BinaryIO], None]
"""Writes an example table to a binary file."""

_PLAN_ATTEMPTS: Final = 64
_SHOWN: Final = 3


def begin_store(root: Path, plan: Plan, files: Mapping[str, bytes], tables: Mapping[str, WriteTable]) -> ledger.Chain:
    """Publish `plan` and what it names, or what a store that is there lacks of it; the plans of the store.

    Arguments and errors as of `StoreWriter.create`.
    """
    refuse_foreign(root)
    if set(tables) != (names := {table.name for table in plan.tables()}):
        raise InvalidInput(f"tables are given for {sorted(tables)}, the plan has {sorted(names)}")
    commit.sweep(root)
    commit.settle(root, but=leases.FOLDER)
    with ExitStack() as stack:
        beginning = _Beginning(root, plan, files, tables, stack)
        chain = beginning.publish_plan()
        beginning.complete(chain)
    return chain


def planned_store(
    root: Path,
    plan: Plan,
    files: Mapping[str, bytes],
    tables: Mapping[str, WriteTable],
    chain: ledger.Chain | None = None,
) -> Plan:
    """The plan that `begin_store` would publish at `root`, nothing of which is left there.

    chain: plans of the store that come before it; None: it is the first. Raises StoreStale where the request is of
    another store than those plans, or adds nothing to them.
    """
    with ExitStack() as stack:
        beginning = _Beginning(root, plan, files, tables, stack)
        target = plan if chain is None else beginning.grown(chain)
        if target is None:
            raise StoreStale(f"{root}: the plans before hold everything that is asked for, so it makes no plan")
        return beginning.whole_plan(target)


class _Beginning:
    """tables are spooled under temporary names, each once; `stack` removes what was not published of them."""

    def __init__(
        self,
        root: Path,
        plan: Plan,
        blobs: Mapping[str, bytes],
        tables: Mapping[str, WriteTable],
        stack: ExitStack,
    ) -> None:
        self.root, self.plan, self.blobs, self.tables, self.stack = root, plan, blobs, tables, stack
        self.files = LocalFiles(root)
        self.records = {
            path: FileRecord(bytes=len(data), sha256=keys.digest_bytes(data)) for path, data in blobs.items()
        }
        self.spooled: dict[str, commit.Pending] = {}

    def publish_plan(self) -> ledger.Chain:
        """The plans of the store, once the last of them holds everything that is asked for."""
        for _ in range(_PLAN_ATTEMPTS):
            chain = ledger.find_chain(self.files)
            target = self.plan if chain is None else self.grown(chain)
            if target is None:
                assert chain is not None
                return chain
            begun = self.whole_plan(target)
            for _, record in calibration_records(self.plan):
                if self.files.size(f"sherl/{record.file}") is None:
                    commit.publish(self.root / "sherl" / record.file, [self.blobs[record.file]])
            number = 1 if chain is None else len(chain.plans) + 1
            commit.publish(self.root / plan_path(number), [begun.to_bytes()], accept=_is_plan)
        raise SherlCacheError(f"{self.root}: the store could not be begun, other processes keep letting it grow")

    def grown(self, chain: ledger.Chain) -> Plan | None:
        """The plan that the store shall grow to; None where it holds everything that is asked for."""
        if changed := differences(chain.head, self.plan, self.records):
            raise StoreStale(
                f"{self.root}: the store was made from something else: {'; '.join(changed)}. "
                "Choose another folder for this one, or ask for what the store was made from"
            )
        return grown(chain.head, self.plan, chain.digests[-1])

    def whole_plan(self, target: Plan) -> Plan:
        """The plan with the records of its blobs, tables and metadata; tables that have none yet are spooled."""
        for table in target.tables():
            if table.record is None:
                self._spool(table)
        return self._with_records(target)

    def complete(self, chain: ledger.Chain) -> None:
        """Publish what the plans name and what is not there."""
        plan = chain.head
        for path, record in sorted(plan.files.items()):
            if self.files.size(f"sherl/{path}") != record.bytes:
                commit.publish(self.root / "sherl" / path, [self.blobs[path]])
        for table in plan.tables():
            if table.record is None:
                raise StoreCorrupt(f"{self.root / PLAN}: {table.name!r} has no table")
            if self.files.size(table.path) != table.record.bytes and table.name in self.tables:
                pending = self._spool(table)
                refuse_other(self.root / table.path, table.record, pending.record)
                pending.publish()
        complete_metadata(self.root, chain)

    def _spool(self, table: TablePlan) -> commit.Pending:
        if table.name not in self.spooled:
            pending = self.stack.enter_context(commit.Pending(self.root / table.path))
            self.tables[table.name](cast("BinaryIO", pending))
            self.spooled[table.name] = pending
        return self.spooled[table.name]

    def _with_records(self, target: Plan) -> Plan:
        """The plan with what is known only now: the records of its blobs, tables and metadata."""
        calibrations = planned_calibrations(self.plan, self.blobs.get)
        metadata = zarr_records(zarr_documents(target, calibrations))
        features = tuple(sorted({*target.features, *target.needed_features}))
        whole = target.model_copy(update={"features": features, "files": self.records, "metadata": metadata})
        whole = with_tables(whole, {name: pending.record for name, pending in self.spooled.items()})
        return parse(Plan, whole.to_bytes(), PLAN)


def _is_plan(path: Path) -> bool:
    try:
        parse(Plan, path.read_bytes(), str(path))
    except (StoreCorrupt, OSError):
        return False
    return True


def refuse_foreign(root: Path) -> None:
    """A folder that holds something else is not made into a store."""
    if root.is_dir():
        others = [path.name for path in root.iterdir() if not path.name.startswith(".")]
        if others and "sherl" not in others:
            raise UsageError(
                f"{root}: the folder holds no store but other things ({', '.join(sorted(others)[:_SHOWN])}): "
                "choose an empty folder, or one that does not exist yet"
            )
    elif root.exists() and not root.is_dir():  # a second look: another writer may make it between the two
        raise UsageError(f"{root}: is not a folder: choose an empty folder, or one that does not exist yet")
