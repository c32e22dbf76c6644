"""Plans that are damaged or gone: which one it is, and making it again.

The digest of a plan stands in every manifest and receipt of what it brought, and in the plan that extends it. So a
plan that was changed is told from one that is whole, a plan that is gone leaves a trace, and what is made in its
place is taken only where it is that very plan, byte for byte.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from . import commit, ledger
from .beginning import WriteTable, planned_store
from .documents import DOCUMENT_BYTES, Plan, Receipt, parse, plan_path
from .errors import StoreCorrupt, StoreNotUsable, StoreStale
from .ledger import BrokenPlan
from .readers.contract import Files
from .readers.local import LocalFiles

_WITNESSES: Final = 2
"""Documents that must agree on a plan that is not there: one alone may be the damaged one."""


def find_broken_plan(files: Files) -> BrokenPlan | None:
    """The first plan of a store that is damaged or gone; None where all are whole, or where there is no store.

    Raises StoreNotUsable for a newer format.
    """
    plans, broken = ledger.sound_plans(files)
    named = Counter(_named_plans(files))
    if broken is not None:
        return _blamed(files, plans, broken, named)
    if not plans:
        problem = f"{files.place(plan_path(1))}: the plan is missing, manifests and receipts name it"
        return BrokenPlan(1, problem, missing=True) if named else None
    unknown = {sha256: count for sha256, count in named.items() if sha256 not in {plan.file_sha256 for plan in plans}}
    count = max(unknown.values(), default=0)
    if count < _WITNESSES or len(ledger.sound_plans(files)[0]) > len(plans):  # one was published meanwhile
        return None
    if plans[-1].file_sha256 in named:
        number, problem = len(plans) + 1, "the plan is missing"
    else:
        number, problem = len(plans), "the plan is not the one that was committed"
    path = files.place(plan_path(number))
    return BrokenPlan(
        number, f"{path}: {problem}, {count} manifests and receipts name another than those that are there"
    )


def restore_plan(
    root: Path,
    number: int,
    plan: Plan | None,
    files: Mapping[str, bytes],
    tables: Mapping[str, WriteTable],
) -> bool:
    """Put plan `number` (from 1) of a store back; False where it is there already, byte for byte.

    plan: what was asked for when it was made, as for `StoreWriter.create`; None: it can only be written anew where its
    bytes alone changed. The plans before it must be whole. Raises StoreCorrupt where that plan does not come out.
    """
    place, path, local = root / plan_path(number), plan_path(number), LocalFiles(root)
    named = set(_named_plans(local)) | set(_extended(local, number + 1))
    current: bytes | None = None
    with suppress(StoreCorrupt):
        current = local.read(path, DOCUMENT_BYTES)
    candidates = list(_reread(current, path))
    if not any(made.file_sha256 in named for made in candidates):
        if plan is None:
            raise StoreCorrupt(
                f"{place}: a plan cannot be made again from the store alone: give what the extract that made it was "
                "asked for, or extract the store anew in another folder"
            )
        candidates = list(_made_again(root, number, plan, files, tables))
    right = next((made.to_bytes() for made in candidates if made.file_sha256 in named), None)
    if right is None:
        raise StoreCorrupt(
            f"{place}: the plan is damaged, and what is asked for now makes another plan than the one that the store names: "
            "ask for what the extract that made it was asked for, with the same names of model and data and the versions "
            "that it ran with"
        )
    if current == right:
        return False
    commit.replace(place, right)  # in one rename: a store whose plan is gone is no store
    return True


def neighbour(files: Files, number: int) -> Plan | None:
    """The plan before plan `number`, else the one behind it; None where neither can be read."""
    before, _ = ledger.sound_plans(files, number - 1)
    return before[-1] if before else next(_read(files, plan_path(number + 1)), None)


def _blamed(files: Files, plans: tuple[Plan, ...], broken: BrokenPlan, named: Mapping[str, int]) -> BrokenPlan:
    """Of a plan and the next one that does not extend it, the one that is not as it was."""
    if not plans or plans[-1].file_sha256 in named:
        return broken
    for later in _read(files, broken.path):
        if later.extends in named or later.file_sha256 in named:
            problem = f"{files.place(plan_path(broken.number - 1))}: the plan is not the one that the next plan extends"
            return BrokenPlan(broken.number - 1, problem)
    return broken


def _made_again(
    root: Path, number: int, plan: Plan, files: Mapping[str, bytes], tables: Mapping[str, WriteTable]
) -> Iterator[Plan]:
    """The plan that the request makes behind the plans before, with the environment of now and of every other plan."""
    local = LocalFiles(root)
    before, broken = ledger.sound_plans(local, number - 1)
    if broken is not None:
        raise StoreCorrupt(broken.problem)
    try:
        made = planned_store(root, plan, files, tables, ledger.Chain(before) if before else None)
    except StoreStale as error:
        raise StoreCorrupt(
            f"{root / plan_path(number)}: the plan cannot be made again from what is asked for: {error}"
        ) from None
    yield made
    others = [*before, *_read(local, plan_path(number + 1))]
    yield from (made.model_copy(update={"environment": other.environment}) for other in others)


def _reread(data: bytes | None, path: str) -> Iterator[Plan]:
    """The plan that some bytes still mean."""
    if data is not None:
        with suppress(StoreCorrupt, StoreNotUsable):
            yield parse(Plan, data, path)


def _read(files: Files, path: str) -> Iterator[Plan]:
    """The plan in a file, where there is one that can be read."""
    with suppress(StoreCorrupt):
        yield from _reread(files.read(path, DOCUMENT_BYTES), path)


def _extended(files: Files, number: int) -> Iterator[str]:
    """Digest of the plan that plan `number` extends."""
    for plan in _read(files, plan_path(number)):
        if plan.extends is not None:
            yield plan.extends


def _named_plans(files: Files) -> Iterator[str]:
    """The plan that each manifest and receipt names, of those that can be read."""
    for number in ledger.manifest_numbers(files):
        with suppress(StoreCorrupt, StoreNotUsable):
            if manifest := ledger.read_manifest(files, number):
                yield manifest.plan
    for name in files.names("sherl/receipts"):
        path = f"sherl/receipts/{name}"
        with suppress(StoreCorrupt, StoreNotUsable):
            if name.endswith(".json") and (data := files.read(path, DOCUMENT_BYTES)) is not None:
                yield parse(Receipt, data, path).plan
