"""Commands that change a store, one scenario each: what is there before, what the command does and promises, and all that
a store may serve meanwhile.

    extraction        a numpy producer alone: raw floats, zstd, int8
    shared            two writers with leases, a unit each in turn
    growth            by examples, by a split, by a tap
    repair            of a cut shard and a flipped table; of the plan; of values that come out otherwise
    gc                after growth, whole or killed near its end; after a repair, which leaves what it set aside
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sherl_cache.storage import Store, claim_units, collect_garbage, repair_store, verify_store
from sherl_cache.storage.documents import PLAN
from sherl_cache.storage.writer import StoreWriter

from .seam import Unsynced, installed
from .small import STREAM, Small, contents

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sherl_cache.storage import Unit, UnitBuffer

    Note = Callable[..., None]
    """Told what was promised to the caller: names of units that were committed, digests of stores that were finished."""
    Command = Callable[[Path, Note], None]

SMALL = Small()
GROWING = Small(parts={"train": (8,)}, sized_for={STREAM: (0, 2)})
SHARD = "train/encoder/h02/c/0/0"
UNIT = ("train/encoder/h00/c/0/0", SHARD)
TABLE = "sherl/examples/train.parquet"


@dataclass(frozen=True)
class Scenario:
    """A command on what is there before: nothing, where `begin` makes nothing.

    damaged: what is there before may be refused until the command has ended.
    """

    name: str
    command: Command
    begin: Callable[[Path], None] = lambda root: None
    damaged: bool = False
    joined_by: Callable[[Path], None] | None = None
    """What a second process does meanwhile."""
    after_kill: Command | None = None
    """What is run after a kill, where it is not the same again."""


@dataclass
class Right:
    """All that a store may serve: contents by digest, oldest first; the last is that of the finished command."""

    snapshots: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of the unbroken run."""
        return list(self.snapshots)[-1]

    @property
    def contents(self) -> dict[str, Any]:
        """Of the unbroken run."""
        return self.snapshots[self.digest]

    def age(self, digest: str) -> int:
        """Rank of a snapshot, the newest the highest."""
        return list(self.snapshots).index(digest)


def begun(scenario: Scenario, root: Path) -> tuple[str, ...]:
    """The digest of what is there before, where that is promised."""
    return (Store.open(root).digest,) if root.exists() and not scenario.damaged else ()


def right(scenario: Scenario, root: Path) -> Right:
    """What the command gives when nothing breaks it; `root` holds the store afterwards."""
    found = Right()
    with installed(Unsynced()):
        scenario.begin(root)
    if root.exists() and not scenario.damaged:
        store = Store.open(root)
        found.snapshots[store.digest] = contents(store)
    with installed(Unsynced()):
        scenario.command(root, lambda *what: None)
    store = Store.open(root)
    found.snapshots[store.digest] = contents(store)
    return found


def extract(small: Small) -> Command:
    """Begin a store, go on with it, or let it grow."""

    def command(root: Path, note: Note) -> None:
        writer = small.create(root)
        missing = {unit.name for unit in writer.missing()}
        note(*(unit.name for unit in writer.units() if unit.name not in missing))
        fill(small, writer, note)
        note(writer.finalize().digest)

    return command


def fill(small: Small, writer: StoreWriter, note: Note) -> None:
    """Commit every unit that is missing."""
    for unit in writer.missing():
        small.fill(writer, unit)
        note(unit.name)


def join(small: Small) -> Callable[[Path], None]:
    """A second process of the same extraction, which ends before it finalises."""
    return lambda root: fill(small, small.create(root), lambda *what: None)


def share(small: Small) -> Command:
    """Two writers with leases that take a unit each in turn; units of dead ones are taken over."""

    def command(root: Path, note: Note) -> None:
        with ExitStack() as stack:
            writers = [small.create(root) for _ in range(2)]
            claims = [
                stack.enter_context(claim_units(writer, lease_seconds=600, settle_seconds=0, waiting=_never))
                for writer in writers
            ]
            while missing := writers[0].missing():
                taken = [(writer, next(units)) for writer, units in zip(writers, claims[: len(missing)], strict=False)]
                for writer, unit in taken:
                    small.fill(writer, unit)
                    note(unit.name)
        for writer in writers:
            note(writer.finalize().digest)

    return command


def twice(small: Small) -> Command:
    """Two writers, each of which does every unit that the other has not committed, in turn."""

    def command(root: Path, note: Note) -> None:
        writers = small.create(root), small.create(root)
        for number, unit in enumerate(writers[0].missing()):
            for writer in writers if number % 2 else reversed(writers):
                small.fill(writer, unit)
                note(unit.name)
        for writer in writers:
            note(writer.finalize().digest)

    return command


def _never(units: int) -> None:
    raise RuntimeError(f"a writer waits for {units} units that nobody does")


def repair(small: Small, by: float = 0.0) -> Command:
    """Make again what `verify --deep` finds; `by`: what is added to every value that is made again."""

    def command(root: Path, note: Note) -> None:
        def make(unit: Unit) -> UnitBuffer:
            buffer = small.buffer(StoreWriter.open(root), unit, small.taps)
            for values in buffer.arrays.values():
                values += by
            return buffer

        if findings := verify_store(root, deep=True):
            files, tables = small.files(), small.tables()
            repair_store(root, findings, make, files=files, tables=tables, plan=small.plan())
        note(Store.open(root).digest)

    return command


def collect(root: Path, note: Note) -> None:
    """Remove what nothing names."""
    collect_garbage(root)


def built(*smalls: Small) -> Callable[[Path], None]:
    """Stores built one after another in one place: the first begins, the others let it grow."""

    def begin(root: Path) -> None:
        for small in smalls:
            small.build(root)

    return begin


def damaged(small: Small, *paths: str) -> Callable[[Path], None]:
    """A finished store with some files damaged: a shard is cut, of another file the last byte differs."""

    def begin(root: Path) -> None:
        small.build(root)
        for path in paths:
            data = (root / path).read_bytes()
            (root / path).write_bytes(data[:-3] if path in UNIT else data[:-1] + bytes([data[-1] ^ 1]))

    return begin


def repaired(small: Small, *paths: str) -> Callable[[Path], None]:
    """A store after a repair, with what that set aside."""

    def begin(root: Path) -> None:
        damaged(small, *paths)(root)
        repair(small)(root, lambda *what: None)

    return begin


def _longer(small: Small) -> Small:
    return replace(small, parts={"train": (*small.parts["train"], 5)})


WIDER = replace(GROWING, parts={**GROWING.parts, "validation": (3,)})
DEEPER = replace(GROWING, taps={STREAM: (0, 1, 2)})
_INT8 = replace(GROWING, encoding="int8")

EXTRACTION = Scenario("extraction", extract(SMALL), joined_by=join(SMALL))
SHARED = Scenario("extraction by two with leases", share(SMALL))
GROWTH = (
    Scenario("growth by examples", extract(_longer(GROWING)), built(GROWING), joined_by=join(_longer(GROWING))),
    Scenario("growth by a split", extract(WIDER), built(GROWING)),
    Scenario("growth by a tap", extract(DEEPER), built(GROWING)),
)
UPKEEP = (
    Scenario("repair of a shard and a table", repair(GROWING), damaged(GROWING, SHARD, TABLE), damaged=True),
    Scenario("repair of the plan", repair(GROWING), damaged(GROWING, PLAN), damaged=True),
    Scenario("repair with other values", repair(GROWING, by=1.0), damaged(GROWING, *UNIT), damaged=True),
    Scenario("gc after growth", collect, built(GROWING, _longer(GROWING))),
    Scenario("gc after a repair", collect, repaired(GROWING, SHARD, TABLE)),
)
SCENARIOS = (
    EXTRACTION,
    Scenario("extraction, zstd", extract(replace(GROWING, encoding="float32+zstd:1"))),
    Scenario("extraction, int8", extract(_INT8)),
    SHARED,
    *GROWTH,
    Scenario("growth by examples, int8", extract(_longer(_INT8)), built(_INT8)),
    Scenario("growth that was killed, then gc", extract(_longer(GROWING)), built(GROWING), after_kill=collect),
    *UPKEEP,
)
"""Those of power.py: the ones with few states last."""

_TINY = Small(parts={"train": (8,)}, taps={STREAM: (0,)})
FAILING = (
    Scenario("extraction", extract(_TINY)),
    Scenario("extraction by two that do every unit", twice(_TINY)),
    Scenario("extraction by two with leases", share(_TINY)),
    *GROWTH,
    *UPKEEP,
)
"""Those of faults.py: how values are encoded changes no call."""
