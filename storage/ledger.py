"""What a store says of itself: its plan, the receipts of its units, its newest valid manifest."""

import contextlib

from .documents import DOCUMENT_BYTES, PLAN, Manifest, Plan, Receipt, Unit, parse, shard_path
from .errors import StoreCorrupt, StoreMissing
from .readers.contract import Files

_MANIFEST_PREFIX = "manifest-"


def read_plan(files: Files) -> Plan:
    """The plan. Raises StoreMissing where there is none."""
    plan = find_plan(files)
    if plan is None:
        raise StoreMissing(
            f"{files.place('')}: there is no store here: name its folder, or make one with `sherl-cache extract`"
        )
    return plan


def find_plan(files: Files) -> Plan | None:
    """The plan, None where there is none."""
    data = files.read(PLAN, DOCUMENT_BYTES)
    return None if data is None else parse(Plan, data, files.place(PLAN))


def read_receipt(files: Files, plan: Plan, plan_sha256: str, unit: Unit) -> Receipt | None:
    """The receipt of a unit, None where there is none.

    Raises StoreCorrupt for one that is not of this plan and unit.
    """
    path = unit.receipt_path
    data = files.read(path, DOCUMENT_BYTES)
    if data is None:
        return None
    receipt = parse(Receipt, data, files.place(path))
    named = {array: record.path for array, record in receipt.arrays.items()}
    arrays = [array.path for array in plan.arrays() if array.split == unit.split]
    if (
        (receipt.plan, receipt.unit) != (plan_sha256, unit.name)
        or (receipt.split, receipt.index) != (unit.split, unit.index)
        or named != {array: shard_path(array, unit.index) for array in arrays}
    ):
        raise StoreCorrupt(f"{files.place(path)}: the receipt belongs to another plan or another unit")
    return receipt


def whole_receipt(files: Files, plan: Plan, plan_sha256: str, unit: Unit) -> Receipt | None:
    """The receipt of a unit whose shards are there in full size; None where anything is missing or
    damaged.
    """
    try:
        receipt = read_receipt(files, plan, plan_sha256, unit)
        if receipt is None or any(files.size(r.path) != r.bytes for r in receipt.arrays.values()):
            return None
    except StoreCorrupt:
        return None
    return receipt


def manifest_path(number: int) -> str:
    """Path of manifest `number` in the store."""
    return f"sherl/{_MANIFEST_PREFIX}{number}.json"


def manifest_numbers(files: Files) -> list[int]:
    """Numbers of the manifests in the store, newest first."""
    numbers = []
    for name in files.names("sherl"):
        digits = name.removeprefix(_MANIFEST_PREFIX).removesuffix(".json")
        if name == f"{_MANIFEST_PREFIX}{digits}.json" and digits.isascii() and digits.isdigit():
            numbers.append(int(digits))
    return sorted(numbers, reverse=True)


def names_other_plan(files: Files, plan_sha256: str) -> bool:
    """Whether there are valid manifests, and none is of this plan."""
    named = set()
    for number in manifest_numbers(files):
        path = manifest_path(number)
        with contextlib.suppress(StoreCorrupt):
            if (data := files.read(path, DOCUMENT_BYTES)) is not None:
                named.add(parse(Manifest, data, files.place(path)).plan)
    return bool(named) and plan_sha256 not in named


def newest_manifest(files: Files, plan_sha256: str) -> tuple[int, Manifest] | None:
    """The newest manifest that is valid and of this plan, with its number; damaged ones are passed over."""
    for number in manifest_numbers(files):
        path = manifest_path(number)
        try:
            data = files.read(path, DOCUMENT_BYTES)
            manifest = None if data is None else parse(Manifest, data, files.place(path))
        except StoreCorrupt:
            continue
        if manifest is not None and manifest.plan == plan_sha256:
            return number, manifest
    return None
