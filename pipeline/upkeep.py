"""A store after it was made: is it whole, what of it can go, what is to be made again, why it does not fit."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..storage import Repair, StoreWriter, collect_garbage, find_garbage, keys, repair_store, verify_store
from ..storage.errors import StoreCorrupt, StoreStale
from ..storage.growth import grown
from ..storage.ledger import newest_snapshot, read_chain
from ..storage.place import parse_place
from ..storage.readers.local import LocalFiles
from ..storage.stale import compare, differences
from .again import stored_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..stages.preparation import Preparation
    from ..storage import Plan, Unit, UnitBuffer
    from .recipe import Recipe


def verify(root: str | Path, deep: bool) -> dict[str, Any]:
    """Check a store's bytes: exit_code 0 whole, 4 incomplete, 5 damaged."""
    place = parse_place(root)
    findings = verify_store(place, deep=deep)
    kinds = {finding.kind for finding in findings}
    return {
        "store": str(place),
        "deep": deep,
        "exit_code": 5 if "corrupt" in kinds else 4 if kinds else 0,
        "findings": [asdict(finding) for finding in findings],
    }


def gc(root: Path, remove: bool) -> dict[str, Any]:
    """What lies in a store and nothing names any more; removed with `remove`."""
    found = collect_garbage(root) if remove else find_garbage(root)
    return {
        "store": str(root),
        "removed": remove,
        "files": [asdict(garbage) for garbage in found],
        "bytes": sum(garbage.bytes for garbage in found),
    }


def repair(root: Path, overrides: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Find every damaged byte, make again exactly what is damaged, and look once more."""
    from ..stages.extract import unit_buffer
    from ..stages.front import Front
    from ..stages.prepare import ExtractSettings
    from .preparing import preparing

    findings = verify_store(root, deep=True)
    damaged = [finding for finding in findings if finding.kind == "corrupt" or finding.unit is None]
    done = Repair()
    before = _manifest_digest(root)
    if damaged and any(finding.path.startswith("sherl/plan") for finding in damaged):
        repair_store(root, damaged, _no_unit)  # says that a plan cannot be made again
    if damaged:
        recorded = stored_settings(_read_plan(root).producer) if not {"model", "data"} <= set(overrides) else {}
        values = {**recorded, **overrides}
        values["text_columns"] = tuple(values.get("text_columns") or ())
        with preparing(ExtractSettings(**values), device, root) as prepared:
            _refuse_other_store(root, prepared)
            front = Front(prepared.loaded, prepared.taps)

            def make(unit: Unit) -> UnitBuffer:
                writer = StoreWriter.open(root)
                rows = writer.table(unit.split).read_unit(unit.index)
                return unit_buffer(front, writer, unit, rows, prepared.settings.batch_tokens)

            done = repair_store(root, damaged, make, files=prepared.files, tables=prepared.tables())
    left = verify_store(root, deep=True)
    after = _manifest_digest(root)
    return {
        "store": str(root),
        "findings": len(findings),
        "files": done.files,
        "units": done.units,
        "changed": done.changed,
        "digest": after,
        "same_digest": before is None or before == after,
        "exit_code": 5 if any(finding.kind == "corrupt" for finding in left) else 4 if left else 0,
        "left": [asdict(finding) for finding in left],
    }


def explain_stale(recipe: Recipe, root: Path) -> dict[str, Any]:
    """Field by field, what a store was made from and what is asked for."""
    from ..stages.explain import SETTING_CLASSES
    from .preparing import extract_settings, preparing

    stored = _read_plan(root)
    with preparing(extract_settings(recipe), recipe.train.device, root) as prepared:
        files = prepared.file_records()
    fields = [asdict(item) for item in compare(stored, prepared.plan, files) if item.field != "producer.extract"]
    here, there = stored.producer.get("extract"), prepared.plan.producer["extract"]
    assert isinstance(there, dict)
    for name, meaning in SETTING_CLASSES.items():
        one = here.get(name) if isinstance(here, dict) else None
        fields.append(
            {
                "field": f"extract.{name}",
                "stored": keys.shown(one),
                "asked": keys.shown(there[name]),
                "meaning": meaning,
                "differs": one != there[name],
                "refused": False,
            }
        )
    lines = differences(stored, prepared.plan, files)
    adds = not lines and grown(stored, prepared.plan, "0" * 64) is not None
    return {
        "store": str(root),
        "verdict": "stale" if lines else "grows" if adds else "same",
        "differences": lines,
        "fields": fields,
        "exit_code": 4 if lines else 0,
    }


# ---------------------------------------------------------------------------------------------------------------------


def _no_unit(unit: Unit) -> UnitBuffer:
    raise StoreStale(f"unit {unit.name} cannot be made again without the plan")


def _read_plan(root: Path) -> Plan:
    """The newest plan of a store. Raises StoreMissing, StoreCorrupt."""
    return read_chain(LocalFiles(root)).head


def _manifest_digest(root: Path) -> str | None:
    """Digest that the newest manifest tells of, whether the store's bytes are right or not."""
    try:
        files = LocalFiles(root)
        found = newest_snapshot(files, read_chain(files))
    except StoreCorrupt:
        return None
    return None if found is None else found[2].digest


def _refuse_other_store(root: Path, prepared: Preparation) -> None:
    """A store is repaired only with what it was made from. Raises StoreStale."""
    if changed := differences(_read_plan(root), prepared.plan, prepared.file_records()):
        raise StoreStale(
            f"{root}: cannot be repaired with this model and data, it was made from others: {'; '.join(changed)}. "
            "Name those that it was made from with --model and --data"
        )
