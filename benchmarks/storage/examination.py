"""What a store shows after a command was cut off, in words; what must not be begins with `WRONG`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sherl_cache.storage import Store, collect_garbage, verify_store
from sherl_cache.storage.errors import SherlCacheError, StoreCorrupt, StoreIncomplete, StoreMissing
from sherl_cache.storage.writer import StoreWriter

from .seam import Unsynced, installed
from .small import contents, differing

if TYPE_CHECKING:
    from pathlib import Path

    from .scenarios import Right, Scenario


def examine(scenario: Scenario, root: Path, right: Right, promised: set[str]) -> list[str]:
    """Open the store, whole and in part, then run the same command again."""
    return [*served(scenario, root, right, promised), *finished(scenario, root, right)]


def served(scenario: Scenario, root: Path, right: Right, promised: set[str]) -> list[str]:
    """What is served and what is refused. promised: names of units and digests of stores that may not be lost."""
    digests = {what for what in promised if what in right.snapshots}
    oldest = max(map(right.age, digests), default=None)
    shown = []
    for partial in (False, True):
        try:
            store = Store.open(root, allow_partial=partial)
            found = contents(store)
        except (StoreCorrupt, StoreIncomplete, StoreMissing) as error:
            shown.append("no part served" if partial else f"refused {type(error).__name__}")
            if oldest is not None:
                shown.append(f"WRONG: a finished store is refused: {error}")
            elif isinstance(error, StoreCorrupt) and not scenario.damaged:
                shown.append(f"WRONG: a store is damaged: {error}")
        else:
            shown.append("part served" if partial else "served")
            whole = right.snapshots.get(store.digest)
            shown += [f"WRONG bytes of {name}" for name in differing(found, whole or right.contents)]
            if whole is not None and set(found) != set(whole):
                shown.append(f"WRONG: not all is served: {sorted(set(whole) - set(found))[:3]}")
            if oldest is not None and (whole is None or right.age(store.digest) < oldest):
                shown.append("WRONG: an older store is served than the one that was finished")
    if lost := promised - digests - _committed(root):
        shown.append(f"WRONG: committed units are lost: {sorted(lost)}")
    return shown


def finished(scenario: Scenario, root: Path, right: Right) -> list[str]:
    """What the same command ends in."""
    try:
        with installed(Unsynced()):
            scenario.command(root, lambda *what: None)
        store = Store.open(root)
    except (SherlCacheError, RuntimeError) as error:
        return [f"WRONG: cannot be finished: {error}"]
    shown = []
    if store.digest != right.digest:
        shown.append("WRONG digest after the same command")
    shown += [f"WRONG after the same command: {finding.problem}" for finding in verify_store(root, deep=True)]
    if scenario.damaged:  # what a repair sets aside is for gc
        with installed(Unsynced()):
            collect_garbage(root)
        shown += [f"WRONG after gc: {finding.problem}" for finding in verify_store(root, deep=True)]
    return shown + [f"WRONG: {path} is left" for path in root.rglob("*.tmp")]


def _committed(root: Path) -> set[str]:
    try:
        writer = StoreWriter.open(root)
    except (StoreCorrupt, StoreMissing):
        return set()
    return {unit.name for unit in writer.units() if writer.committed(unit)}
