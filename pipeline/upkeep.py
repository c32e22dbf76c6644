"""A store after it was made: is it whole, what of it can go, what is to be made again, why it does not fit, a copy of it."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from pydantic import ByteSize, TypeAdapter, ValidationError

from ..storage import (
    Repair,
    Store,
    StoreWriter,
    collect_garbage,
    commit,
    find_garbage,
    keys,
    repair_store,
    verify_store,
)
from ..storage.broken_plans import find_broken_plan, neighbour, restore_plan
from ..storage.copying import StoreCopy
from ..storage.errors import AccessDenied, OutOfSpace, StoreCorrupt, StoreStale, UsageError
from ..storage.growth import grown
from ..storage.ledger import newest_snapshot, read_chain
from ..storage.place import RemotePlace, local_folder, parse_place
from ..storage.readers.local import LocalFiles
from ..storage.stale import compare, differences
from .again import stored_settings
from .cores import usable_cores
from .progress import progress, size
from .space import free_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..stages.preparation import Preparation
    from ..stages.prepare import ExtractSettings
    from ..storage import Plan, Unit, UnitBuffer
    from ..storage.ledger import BrokenPlan
    from .recipe import Recipe

_PLACES: Final = ("model", "data", "validation")
"""Settings that say where something is, and not what it is."""


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


def finalize(root: Path) -> dict[str, Any]:
    """Publish the manifest of a store whose units are all there. Raises StoreMissing, StoreIncomplete."""
    writer = StoreWriter.open(root)
    return {"store": str(root), "units": len(writer.units()), "digest": writer.finalize().digest}


def copy(root: str | Path, target: str | Path) -> dict[str, Any]:
    """Copy a finished store into a folder, or what a copy that is there lacks of it. Raises OutOfSpace before the first
    byte where it will not fit.
    """
    begun = time.monotonic()
    copying = StoreCopy(root, target)
    needed, free = copying.lacking(), free_bytes(copying.root)
    if free is not None and needed > free:
        raise OutOfSpace(
            f"{copying.root}: the copy needs {size(needed)} ({needed:,} bytes) and {size(free)} ({free:,} bytes) are free; "
            "choose another folder, or read the store where it is"
        )
    copied = 0
    with progress("copy", needed, "bytes") as bar:

        def advance(count: int) -> None:
            nonlocal copied
            copied += count
            bar.advance(count)

        manifest = copying.run(advance)
    return {
        "store": str(copying.source),
        "to": str(copying.root),
        "bytes": copied,
        "digest": manifest.digest,
        "seconds": time.monotonic() - begun,
    }


def analyze(
    root: str | Path, split: str | None, memory: str, rows: int | None, threads: int | None, out: Path | None
) -> dict[str, Any]:
    """Statistics of the layers of a split, written beside the store's data or into `out`.

    memory: bytes, as in 512MiB. Raises UsageError where the store lies where nothing can be written and no `out` is given.
    """
    from .analysis.document import analysis_path, write_analysis
    from .analysis.run import analyze_split

    place = parse_place(root)
    try:
        limit = int(TypeAdapter(ByteSize).validate_python(memory))
    except ValidationError:
        raise UsageError(f"--memory {memory!r}: a number of bytes is needed, as in 512MiB") from None
    if out is None and isinstance(place, RemotePlace):
        raise UsageError(f"{place}: statistics are not written to object storage; name a folder with --out")
    store = Store.open(place)
    split = split or ("train" if "train" in store.plan.splits else min(store.plan.splits))
    store.split(split)
    folder = out if out is not None else local_folder(place) / analysis_path(split)
    try:
        commit.link_mode(folder)  # before minutes of work
    except AccessDenied as error:
        raise AccessDenied(f"{error}; name another folder with --out") from None
    found, channels = analyze_split(store, split, limit, threads or usable_cores(), rows)
    written = write_analysis(folder, found, channels)
    return {"store": str(place), "out": str(folder), **written.model_dump(mode="json")}


def repair(root: Path, given: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Find every damaged byte, make again exactly what is damaged, and look once more.

    given: values of the `extract` section. What was moved is looked for where they say; a plan that is damaged is made
    again from them, and from what the plan beside it says for those that are not given.
    """
    from ..stages.extract import unit_buffer
    from ..stages.streaming_front import front_of
    from .preparing import preparing

    done, plans = Repair(), 0
    while (broken := find_broken_plan(LocalFiles(root))) is not None:
        _repair_plan(root, broken, given, device)
        done.files.append(broken.path)
        plans += 1
    findings = verify_store(root, deep=True)
    damaged = [finding for finding in findings if finding.kind == "corrupt" or finding.unit is None]
    before = _manifest_digest(root)
    if damaged:
        moved = {name: value for name, value in given.items() if name in _PLACES}
        settings = _settings(_read_plan(root), given, moved)
        with preparing(settings, device, root) as prepared:
            _refuse_other_store(root, prepared)
            front = front_of(prepared.loaded, prepared.taps)

            def make(unit: Unit) -> UnitBuffer:
                writer = StoreWriter.open(root)
                rows = writer.table(unit.split).read_unit(unit.index)
                tokens, batches = prepared.settings.batch_tokens, prepared.batches
                return unit_buffer(front, writer, unit, rows, tokens, batches=batches)

            made = repair_store(root, damaged, make, files=prepared.files, tables=prepared.tables())
            done = replace(made, files=[*done.files, *made.files])
    left = verify_store(root, deep=True)
    after = _manifest_digest(root)
    return {
        "store": str(root),
        "findings": len(findings) + plans,
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


def _repair_plan(root: Path, broken: BrokenPlan, given: Mapping[str, Any], device: str) -> None:
    """Make a plan again, from what the extract that made it was asked for. Raises StoreCorrupt, saying what is needed."""
    from .preparing import preparing

    with suppress(StoreCorrupt):  # its bytes alone may have changed
        restore_plan(root, broken.number, None, {}, {})
        return
    beside = neighbour(LocalFiles(root), broken.number)
    rest = "" if beside is None else "; those not given are taken from the plan beside it"
    advice = (
        "A plan can be made again only from what the extract that made it was asked for: give repair all options of that "
        f"command{rest}. Model and data must be where they were, on such a machine, with as many threads and the same "
        "versions. Nothing of the "
        "store was changed; where this cannot be had, extract it anew in another folder"
    )
    if beside is None and not {"model", "data"} <= set(given):
        raise StoreCorrupt(f"{broken.problem}. {advice}")
    with preparing(_settings(beside, given, given), device, root, broken.number - 1) as prepared:
        try:
            restore_plan(root, broken.number, prepared.plan, prepared.files, prepared.tables())
        except StoreCorrupt as error:
            raise StoreCorrupt(f"{error}. {advice}") from None


def _settings(plan: Plan | None, given: Mapping[str, Any], over: Mapping[str, Any]) -> ExtractSettings:
    """What a plan was made from, with `over` laid over it; where no plan says that, what is given.

    Raises StoreNotUsable where a store of an older version does not say it, and it is not given.
    """
    from ..stages.prepare import ExtractSettings

    silent = plan is None or not isinstance(plan.producer.get("extract"), dict)
    if silent and {"model", "data"} <= set(given):
        values = dict(given)
    else:
        values = {**stored_settings({} if plan is None else plan.producer), **over}
    values["text_columns"] = tuple(values.get("text_columns") or ())
    return ExtractSettings(**values)


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
