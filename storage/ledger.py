"""What a store says of itself: its plans, the receipts of its units, its newest valid manifest."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from . import keys
from .documents import DOCUMENT_BYTES, Manifest, Plan, Receipt, Unit, parse, plan_path, shard_path
from .errors import StoreCorrupt, StoreMissing
from .growth import shrunk
from .readers.contract import Files

_MANIFEST_PREFIX: Final = "manifest-"
_PLAN_PREFIX: Final = "plan-"
MOST_PLANS: Final = 10_000


@dataclass(frozen=True)
class Piece:
    """What one receipt commits: the arrays of a unit that plan `number` asked for first."""

    unit: Unit
    number: int
    plan_sha256: str
    arrays: tuple[str, ...]
    first: bool
    """Whether the unit itself is new in that plan."""

    @property
    def name(self) -> str:
        """As a manifest names its receipt: `train-00003`, or `train-00003.2` for what plan 2 added."""
        return self.unit.name if self.first else f"{self.unit.name}.{self.number}"

    @property
    def path(self) -> str:
        """Path of its receipt in the store."""
        return f"sherl/receipts/{self.name}.json"


@dataclass(frozen=True)
class Chain:
    """The plans of a store, oldest first, each a whole plan that extends the one before."""

    plans: tuple[Plan, ...]

    @property
    def head(self) -> Plan:
        """What the store shall hold once everything is written."""
        return self.plans[-1]

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """Digest of each plan's file."""
        return tuple(plan.file_sha256 for plan in self.plans)

    def upto(self, place: int) -> "Chain":
        """The chain as it was when plan `place` (counted from 0) was its last."""
        return self if place == len(self.plans) - 1 else Chain(self.plans[: place + 1])

    def began(self, split: str) -> Plan:
        """The plan that brought a split into the store, which is one of the head's."""
        return next(plan for plan in self.plans if split in plan.splits)

    @cached_property
    def pieces(self) -> dict[str, tuple[Piece, ...]]:
        """By unit name, in order of the head's units: what its receipts commit, oldest first."""
        units = [plan.units() for plan in self.plans]
        found: dict[str, list[Piece]] = {unit.name: [] for unit in units[-1]}
        held: dict[str, set[str]] = {}
        for number, (plan, sha256) in enumerate(zip(self.plans, self.digests, strict=True), 1):
            asked: dict[str, list[str]] = {}
            for array in plan.arrays():
                asked.setdefault(array.split, []).append(array.path)
            for unit in units[number - 1]:
                arrays, added = tuple(asked[unit.split]), held.get(unit.split, set())
                pieces = found[unit.name]
                if not pieces:
                    pieces.append(Piece(unit, number, sha256, arrays, True))
                elif new := tuple(path for path in arrays if path not in added):
                    pieces.append(Piece(unit, number, sha256, new, False))
            held = {split: set(paths) for split, paths in asked.items()}
        return {name: tuple(pieces) for name, pieces in found.items()}


@dataclass(frozen=True)
class BrokenPlan:
    """A plan that cannot be used: its number, counted from 1, and what is wrong with it, its place included.

    missing: whether there is nothing of it.
    """

    number: int
    problem: str
    missing: bool = False

    @property
    def path(self) -> str:
        """Path of the plan in the store."""
        return plan_path(self.number)


def read_chain(files: Files) -> Chain:
    """Every plan of the store. Raises StoreMissing where there is none."""
    chain = find_chain(files)
    if chain is None:
        raise StoreMissing(
            f"{files.place('')}: there is no store here: name its folder, or make one with `sherl-cache extract`"
        )
    return chain


def find_chain(files: Files) -> Chain | None:
    """Every plan of the store, None where there is none.

    Raises StoreCorrupt where one cannot be read, is missing between others, or does not extend the one before.
    """
    plans, broken = sound_plans(files)
    if broken is not None:
        raise StoreCorrupt(broken.problem)
    return Chain(plans) if plans else None


def sound_plans(files: Files, most: int = MOST_PLANS) -> tuple[tuple[Plan, ...], BrokenPlan | None]:
    """The plans of a store, at most so many, up to the first that cannot be used, and that one; None: there is none."""
    plans: list[Plan] = []
    while len(plans) < most:
        path = plan_path(len(plans) + 1)
        try:
            data = files.read(path, DOCUMENT_BYTES)
            if data is None and plans and (later := _later_plans(files, len(plans) + 1)):
                data = files.read(path, DOCUMENT_BYTES)  # both may have been published since
                if data is None:
                    raise StoreCorrupt(f"{files.place(path)}: the plan is missing, {later[0]} extends it")
            if data is None:
                break
            plan = parse(Plan, data, files.place(path))
            if plan.extends != (plans[-1].file_sha256 if plans else None):
                raise StoreCorrupt(f"{files.place(path)}: the plan does not extend the one before it")
            if plans and (lost := shrunk(plans[-1], plan)):
                raise StoreCorrupt(f"{files.place(path)}: the plan contradicts the one it extends: {lost[0]}")
        except StoreCorrupt as error:
            return tuple(plans), BrokenPlan(len(plans) + 1, str(error))
        plans.append(plan)
    return tuple(plans), None


def _later_plans(files: Files, number: int) -> list[str]:
    """Paths of plans that come after plan `number`, the nearest first."""
    return [plan_path(later) for later in sorted(_numbers(files, _PLAN_PREFIX)) if later > number]


def _numbers(files: Files, prefix: str) -> list[int]:
    """Numbers of the documents that are called `<prefix><number>.json`."""
    numbers = []
    for name in files.names("sherl"):
        digits = name.removeprefix(prefix).removesuffix(".json")
        if name == f"{prefix}{digits}.json" and digits.isascii() and digits.isdigit() and len(digits) < 10:
            numbers.append(int(digits))
    return numbers


@dataclass(frozen=True)
class Held:
    """A receipt as it lies in a store: what it says, and the digest of its file."""

    receipt: Receipt
    sha256: str


def read_receipt(files: Files, piece: Piece) -> Held | None:
    """The receipt of a piece, None where there is none.

    Raises StoreCorrupt for one that is not of this plan and unit.
    """
    data = files.read(piece.path, DOCUMENT_BYTES)
    if data is None:
        return None
    receipt = parse(Receipt, data, files.place(piece.path))
    named = {array: record.path for array, record in receipt.arrays.items()}
    unit = piece.unit
    if (
        (receipt.plan, receipt.unit) != (piece.plan_sha256, unit.name)
        or (receipt.split, receipt.index) != (unit.split, unit.index)
        or named != {array: shard_path(array, unit.index) for array in piece.arrays}
    ):
        raise StoreCorrupt(f"{files.place(piece.path)}: the receipt belongs to another plan or another unit")
    return Held(receipt, keys.digest_bytes(data))


def whole_receipt(files: Files, piece: Piece) -> Held | None:
    """The receipt of a piece whose shards are there in full size; None where anything is missing or damaged."""
    try:
        held = read_receipt(files, piece)
        if held is None or any(files.size(record.path) != record.bytes for record in held.receipt.arrays.values()):
            return None
    except StoreCorrupt:
        return None
    return held


def joined(receipts: Iterable[Receipt]) -> Receipt:
    """The receipts of all pieces of one unit as one, that of the first piece with the arrays of all."""
    first, *others = receipts
    arrays = dict(first.arrays)
    for receipt in others:
        arrays |= receipt.arrays
    return first.model_copy(update={"arrays": arrays}) if others else first


def manifest_path(number: int) -> str:
    """Path of manifest `number` in the store."""
    return f"sherl/{_MANIFEST_PREFIX}{number}.json"


def manifest_numbers(files: Files) -> list[int]:
    """Numbers of the manifests in the store, newest first."""
    return sorted(_numbers(files, _MANIFEST_PREFIX), reverse=True)


def read_manifest(files: Files, number: int) -> Manifest | None:
    """Manifest `number`, None where there is none. Raises StoreCorrupt for a damaged one."""
    data = files.read(manifest_path(number), DOCUMENT_BYTES)
    return None if data is None else parse(Manifest, data, files.place(manifest_path(number)))


def manifests(files: Files) -> list[tuple[int, Manifest]]:
    """Every manifest that can be read, newest first; damaged ones are passed over."""
    found = []
    for number in manifest_numbers(files):
        try:
            manifest = read_manifest(files, number)
        except StoreCorrupt:
            continue
        if manifest is not None:
            found.append((number, manifest))
    return found


def newest_manifest(files: Files, plan_sha256: str) -> tuple[int, Manifest] | None:
    """The newest manifest that is valid and of this plan, with its number; damaged ones are passed over."""
    return next(((number, found) for number, found in manifests(files) if found.plan == plan_sha256), None)


def newest_snapshot(files: Files, chain: Chain, number: int | None = None) -> tuple[int, int, Manifest] | None:
    """Place of the last plan that is finished, and its newest valid manifest with its number; None where none is.

    number: of the manifest that is wanted, instead of the newest.
    """
    found = [
        (chain.digests.index(manifest.plan), place, manifest)
        for place, manifest in manifests(files)
        if manifest.plan in chain.digests and number in (None, place)
    ]
    return max(found, key=lambda item: item[:2], default=None)
