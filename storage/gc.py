"""What lies in a store and nothing names any more: it is shown, and removed when asked for.

Kept are every plan, the newest manifest, and whatever the last plan names or will name, finished or not; temporary
files and leases of writers that may be at work; and files that no store of this package makes. So a reader that is
open reads on; only older snapshots, by their manifests, can no longer be opened.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from . import commit, leases, ledger
from .broken_plans import find_broken_plan
from .documents import plan_path, shard_path
from .errors import StoreCorrupt, StoreMissing
from .naming import is_abandoned, is_temporary
from .readers.local import LocalFiles

Reason = Literal["temporary", "lease", "manifest", "receipt", "plan", "shard", "table", "blob", "metadata"]

_PATTERNS: Final[tuple[tuple[Reason, re.Pattern[str]], ...]] = (
    ("manifest", re.compile(r"sherl/manifest-\d{1,9}\.json")),
    ("plan", re.compile(r"sherl/plan-\d{1,9}\.json")),
    ("receipt", re.compile(r"sherl/receipts/[^/]+\.json")),
    ("table", re.compile(r"sherl/examples/[^/]+\.parquet")),
    ("lease", re.compile(r"sherl/leases/[^/]+\.json")),
    ("blob", re.compile(r"sherl/(weights|calibration)/.+")),
    ("shard", re.compile(r"[^/]+/[^/]+/h\d{2,4}/c/\d+/0")),
    ("metadata", re.compile(r"[^/]+(/[^/]+(/h\d{2,4})?)?/zarr\.json")),
)


@dataclass(frozen=True)
class Garbage:
    """A file that nothing names: its path in the store, its bytes, and what kind of file it is."""

    path: str
    bytes: int
    reason: Reason


def find_garbage(root: str | Path) -> list[Garbage]:
    """Every file of a store that nothing names, by path; nothing is changed.

    Raises StoreMissing where there is no store, StoreCorrupt where one of its plans is damaged or gone.
    """
    root = Path(root)
    if not root.is_dir():
        raise StoreMissing(f"{root}: there is no such folder, so no store")
    files = LocalFiles(root)
    if (broken := find_broken_plan(files)) is not None:
        raise StoreCorrupt(
            f"{broken.problem}: repair the store first, or what that plan names would be taken for garbage"
        )
    chain = ledger.read_chain(files)
    named = _named(files, chain)
    found = []
    for path, size in _walked(root):
        reason = _reason(files, path) if path not in named else None
        if reason is not None:
            found.append(Garbage(path, size, reason))
    return sorted(found, key=lambda garbage: garbage.path)


def collect_garbage(root: str | Path) -> list[Garbage]:
    """Remove what `find_garbage` finds; what was removed."""
    root = Path(root)
    removed = []
    for garbage in find_garbage(root):
        commit.remove(root / garbage.path)
        removed.append(garbage)
    return removed


def _named(files: LocalFiles, chain: ledger.Chain) -> set[str]:
    """Paths that the plans and the newest manifest name, whether the files are there or not."""
    head = chain.head
    named = {plan_path(number) for number in range(1, len(chain.plans) + 1)}
    newest = ledger.newest_snapshot(files, chain)
    kept = ledger.manifest_numbers(files) if newest is None else [newest[1]]
    named |= {ledger.manifest_path(number) for number in kept}
    named |= {piece.path for pieces in chain.pieces.values() for piece in pieces}
    named |= {table.path for table in head.tables()}
    named |= {f"sherl/{path}" for path in head.files}
    for plan in chain.plans:
        named |= set(plan.metadata)
    units = {split: plan.units(split) for split, plan in head.splits.items()}
    named |= {shard_path(array.path, unit.index) for array in head.arrays() for unit in units[array.split]}
    return named


def _reason(files: LocalFiles, path: str) -> Reason | None:
    """What kind of unnamed file this is; None where it is to be kept."""
    name = path.rpartition("/")[2]
    if is_temporary(name):
        return "temporary" if is_abandoned(name) else None
    for reason, pattern in _PATTERNS:
        if pattern.fullmatch(path):
            return reason if reason != "lease" or leases.is_left(files, path) else None
    return None


def _walked(root: Path) -> Iterator[tuple[str, int]]:
    """Path and bytes of every regular file; links are not followed."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(found.st_mode):
                yield path.relative_to(root).as_posix(), found.st_size
