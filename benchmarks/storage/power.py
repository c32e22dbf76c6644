"""Power cut: states of the disk that may be found after power was lost during a command, each opened and finished.

Every call that a command makes at the seam (sherl_cache.storage.system) is recorded; the record is cut after each call, and
from what came before the cut a disk is made up (power_disk.py says what may be found). Recorded is each command of
scenarios.py: undisturbed; killed before some call, then repeated (or followed by another command); and, where a second
process may join, with that inside some call.

Not covered: disks that answer a flush before it is done, bytes that decay later (see flips), a rename of which only one half
survives, file servers that keep less than they promise. The choice of surviving subsets is enumerated up to three
unsynced names of a cut and drawn by seed above.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .examination import examine
from .power_disk import Disk
from .row import Row, Scale
from .scenarios import EXTRACTION, SCENARIOS, Right, Scenario, begun, right
from .seam import Call, Killed, Unsynced, Watched, installed, new_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from .power_disk import Tree

STATES = 1000
_LAST = 8  # calls before which a command is killed that another one follows
VARIANTS = 12  # states drawn of one cut, at most


@dataclass(frozen=True)
class Record:
    """The calls of a command, what was in the folder before, and the digest of a store that was finished by then."""

    name: str
    base: Path
    before: Tree
    promised: tuple[str, ...]
    log: list[Call]


@dataclass(frozen=True)
class Cut:
    """A record and where it is cut."""

    record: Record
    after: int

    def disk(self) -> Disk:
        """What the disk was told before the cut."""
        disk = Disk(self.record.base, self.record.before)
        disk.promised.update(self.record.promised)
        for call in self.record.log[: self.after]:
            disk.apply(call)
        return disk


def cuts(scenario: Scenario, folder: Path, draw: random.Random, *, quick: bool = False) -> list[Cut]:
    """Every cut of every record of a scenario; fewer records where `quick`."""
    records = _records(scenario, folder, draw, quick)
    return [Cut(record, after) for record in records for after in range(len(record.log) + 1)]


def tree(base: Path) -> Tree:
    """What a folder holds."""
    found = sorted(base.rglob("*"))
    return {str(path.relative_to(base)): path.read_bytes() if path.is_file() else None for path in found}


def _records(scenario: Scenario, folder: Path, draw: random.Random, quick: bool) -> Iterator[Record]:
    times = 3 if scenario is EXTRACTION and not quick else 1
    alone = _record(scenario, folder / "alone", Watched())
    yield alone
    calls = range(1, sum(call.name != "mark" for call in alone.log))
    if scenario.joined_by is not None:
        for at in draw.sample(calls, times):
            yield _joined(scenario, folder / f"joined-{at}", at)
    last = calls[-_LAST:] if scenario.after_kill else calls
    kills = 2 if quick else _LAST if scenario.after_kill else times + 1
    for at in draw.sample(last, min(kills, len(last))):
        yield _killed(scenario, folder / f"killed-{at}", at)


def _record(scenario: Scenario, base: Path, watched: Watched) -> Record:
    """The record of one run; where it is killed, of the same command again behind it."""
    base.mkdir(parents=True)
    root = base / "store"
    with installed(Unsynced()):
        scenario.begin(root)
    before, promised = tree(base), begun(scenario, root)
    with installed(watched):
        try:
            scenario.command(root, watched.mark)
        except Killed:
            watched.close_left()
            watched.dead, watched.before = False, None
            new_process()
            (scenario.after_kill or scenario.command)(root, watched.mark)
    return Record(base.name, base, before, promised, watched.log)


def _joined(scenario: Scenario, base: Path, at: int) -> Record:
    def before(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if number == at and scenario.joined_by is not None:
            scenario.joined_by(base / "store")

    return _record(scenario, base, Watched(before))


def _killed(scenario: Scenario, base: Path, at: int) -> Record:
    def before(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if number == at:
            watched.dead = True
            raise Killed

    watched = Watched(before)
    return _record(scenario, base, watched)


def states(found: Sequence[Cut], draw: random.Random) -> Iterator[tuple[Cut, Tree, set[str]]]:
    """Different disks drawn over all cuts, each with what was promised before its cut.

    A disk that was found at another cut with the same promises is not repeated.
    """
    drawn = [(cut, variant) for cut in found for variant in range(VARIANTS)]
    draw.shuffle(drawn)
    seen: set[str] = set()
    for cut, variant in drawn:
        disk = cut.disk()
        state = disk.state(variant, draw)
        named = sorted((path, b"/" if data is None else hashlib.sha256(data).digest()) for path, data in state.items())
        key = repr((named, sorted(disk.promised)))
        if key not in seen:
            seen.add(key)
            yield cut, state, disk.promised


def examine_state(scenario: Scenario, state: Tree, promised: set[str], place: Path, expected: Right) -> list[str]:
    """What one state shows, in words: see examination.py. `place` is removed again."""
    for path, data in state.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            (place / path).mkdir(exist_ok=True)
        else:
            (place / path).write_bytes(data)
    shown = examine(scenario, place / "store", expected, promised)
    shutil.rmtree(place, ignore_errors=True)
    return shown


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """One row for each scenario: states, and what they showed."""
    wanted = scale.of(STATES, 60)
    for left in range(
        len(SCENARIOS), 0, -1
    ):  # those with few states last in the list, so first: the others take the rest
        scenario, share = SCENARIOS[left - 1], -(-wanted // left)
        place = folder / str(left)
        draw = random.Random(f"{scale.seed} {scenario.name}")
        expected = right(scenario, place / "whole")
        found = cuts(scenario, place / "records", draw, quick=scale.quick)
        shown: Counter[str] = Counter()
        wrong = []
        count = 0
        for count, (cut, state, promised) in enumerate(itertools.islice(states(found, draw), share), 1):
            seen = examine_state(scenario, state, promised, place / f"state-{count}", expected)
            shown.update(what for what in seen if not what.startswith("WRONG"))
            wrong += [f"{cut.record.name}, cut after call {cut.after}: {w}" for w in seen if w.startswith("WRONG")]
        wanted -= count
        shutil.rmtree(place)
        yield Row(
            f"power cut: {scenario.name}",
            "0 wrong bytes served; the same command ends in the unbroken digest",
            f"{count:,} states of {len(found):,} cuts: {len(wrong)} wrong, {shown['served']} served whole, "
            f"{shown['part served'] - shown['served']} in part",
            not wrong and count > 0,
            {"states": count, "cuts": len(found), "shown": dict(shown), "wrong": wrong[:20]},
        )
