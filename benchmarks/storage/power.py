"""Power cut: states of the disk that may be found after power was lost during a write, each opened and finished.

Every call that a writer makes at the seam (sherl_cache.storage.system) is recorded; the record is cut after each call, and
from what came before the cut a disk is made up. The model, which is what POSIX leaves open:

* Of a file, what was written before its last successful fsync is there. Of later writes anything may be: nothing, all, a
  prefix, the full length with zeros behind some point, or the full length with sectors missing in the middle.
* Of a folder, every link, rename, unlink, mkdir and creation before its last successful fsync is there. Of later ones any
  subset may be, whatever their order; each is there whole or not at all. An fsync of a file says nothing of its name.
* A folder that is lost takes with it all that is in it.

Not covered: disks that answer a flush before it is done, bytes that decay later (see flips), a rename of which only one half
survives, file servers that keep less than they promise. Recorded are a numpy producer alone, with a second writer inside
its calls, and after a kill at some call; the choice of surviving subsets is enumerated up to three unsynced names of a
cut and drawn by seed above.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sherl_cache.storage import Store, StoreWriter
from sherl_cache.storage.errors import (
    SherlCacheError,
    StoreCorrupt,
    StoreIncomplete,
    StoreMissing,
)

from .row import Row, Scale
from .seam import Call, Killed, Unsynced, Watched, installed, new_process
from .small import Small, contents, differing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECTOR = 64  # small, since the files of this store are
VARIANTS = 12  # states drawn of one cut, at most
ENUMERATED = 3  # unsynced names of which every subset is tried

Tree = dict[str, bytes | None]
"""Content of files by path, None for folders."""


@dataclass
class File:
    """Bytes that an fsync made durable, and all that were written."""

    durable: bytes = b""
    written: bytes = b""


@dataclass(frozen=True)
class Change:
    """One change of a folder: `name` now means `thing` (a file's number, -1 for a folder); `gone` means nothing."""

    name: str | None = None
    thing: int = -1
    gone: str | None = None


@dataclass
class Folder:
    """Changes in order; the first `synced` of them are durable."""

    changes: list[Change] = field(default_factory=list)
    synced: int = 0


class Disk:
    """What a disk was told so far, below a folder that was there before."""

    def __init__(self, base: Path) -> None:
        self.base = str(base)
        self.files: list[File] = []
        self.folders = {"": Folder()}
        self.descriptors: dict[int, tuple[str, Any]] = {}
        self.promised: set[str] = set()

    def apply(self, call: Call) -> None:
        """Take in one recorded call."""
        match call.name, call.arguments:
            case "mark", what:
                self.promised |= set(what)
            case "open", (path, flags, *_):
                self._open(path, flags, call.answer)
            case "close", (descriptor,):
                self.descriptors.pop(descriptor, None)
            case "writev", (descriptor, data):
                self.files[self.descriptors[descriptor][1]].written += data
            case "fsync", (descriptor,):
                self._sync(*self.descriptors.get(descriptor, ("outside", None)))
            case "mkdir", (path,):
                folder, name = self._split(path)
                self.folders[f"{folder}/{name}".lstrip("/")] = Folder()
                self._change(folder, Change(name))
            case "link", (source, target):
                self._change(self._split(target)[0], Change(self._split(target)[1], self._number(source)))
            case "unlink", (path,):
                folder, name = self._split(path)
                self._change(folder, Change(gone=name))
            case (("rename" | "rename_new"), (source, target)):
                folder, name = self._split(target)
                self._change(folder, Change(name, self._number(source), self._split(source)[1]))
            case other:
                raise ValueError(other)

    def state(self, variant: int, draw: random.Random) -> Tree:
        """One disk that may be found: 0 what is durable only, 1 everything, above that mixtures."""
        tree: Tree = {}
        unsynced = sum(len(folder.changes) - folder.synced for folder in self.folders.values())
        place = 0

        def survives() -> bool:
            nonlocal place
            place += 1
            if variant < 2:
                return variant == 1
            if unsynced <= ENUMERATED:
                return bool((variant - 2) >> (place - 1) & 1)
            return draw.random() < 0.5

        contents = [self._found(file, variant, draw) for file in self.files]
        names: dict[str, dict[str, int]] = {}
        for path, folder in self.folders.items():
            held: dict[str, int] = {}
            for number, change in enumerate(folder.changes):
                if number >= folder.synced and not survives():
                    continue
                if change.gone is not None:
                    held.pop(change.gone, None)
                if change.name is not None:
                    held[change.name] = change.thing
            names[path] = held

        def walk(path: str) -> None:
            for name, thing in names[path].items():
                inner = f"{path}/{name}".lstrip("/")
                tree[inner] = None if thing < 0 else contents[thing]
                if thing < 0:
                    walk(inner)

        walk("")
        return tree

    @staticmethod
    def _found(file: File, variant: int, draw: random.Random) -> bytes:
        durable, written = file.durable, file.written
        if durable == written or variant == 0:
            return durable
        if variant == 1:
            return written
        cut = draw.randint(len(durable), len(written))
        how = draw.choice(("nothing", "prefix", "zeros", "torn", "all"))
        if how == "torn":
            torn = bytearray(written)
            for start in range(len(durable), len(written), SECTOR):
                if draw.random() < 0.5:
                    stop = min(start + SECTOR, len(written))
                    torn[start:stop] = bytes(stop - start)
            return bytes(torn)
        return {
            "nothing": durable,
            "prefix": written[:cut],
            "zeros": written[:cut] + bytes(len(written) - cut),
            "all": written,
        }[how]

    def _open(self, path: str, flags: int, descriptor: int) -> None:
        if flags & os.O_DIRECTORY:
            inside = path == self.base or path.startswith(f"{self.base}/")
            self.descriptors[descriptor] = ("folder" if inside else "outside", os.path.relpath(path, self.base))
            return
        folder, name = self._split(path)
        self.files.append(File())
        self.descriptors[descriptor] = ("file", len(self.files) - 1)
        self._change(folder, Change(name, len(self.files) - 1))

    def _sync(self, kind: str, what: Any) -> None:
        if kind == "file":
            self.files[what].durable = self.files[what].written
        elif kind == "folder":
            folder = self.folders["" if what == "." else what]
            folder.synced = len(folder.changes)

    def _split(self, path: str) -> tuple[str, str]:
        folder, _, name = os.path.relpath(path, self.base).rpartition("/")
        return folder, name

    def _change(self, folder: str, change: Change) -> None:
        self.folders[folder].changes.append(change)

    def _number(self, path: str) -> int:
        folder, name = self._split(path)
        for change in reversed(self.folders[folder].changes):
            if change.name == name:
                return change.thing
        raise ValueError(path)


@dataclass(frozen=True)
class Cut:
    """A record and where it is cut."""

    scenario: str
    base: Path
    log: list[Call]
    after: int

    def disk(self) -> Disk:
        """What the disk was told before the cut."""
        disk = Disk(self.base)
        for call in self.log[: self.after]:
            disk.apply(call)
        return disk


def cuts(small: Small, folder: Path, seed: int) -> list[Cut]:
    """Every cut of every recorded scenario."""
    return [
        Cut(scenario, base, log, after)
        for scenario, base, log in _records(small, folder, random.Random(seed))
        for after in range(len(log) + 1)
    ]


def _records(small: Small, folder: Path, draw: random.Random) -> Iterator[tuple[str, Path, list[Call]]]:
    def base(name: str) -> Path:
        path = folder / "records" / name
        path.mkdir(parents=True)
        return path

    alone = Watched()
    with installed(alone):
        _write(small, base("alone") / "store", alone)
    yield "alone", folder / "records" / "alone", alone.log
    for at in sorted(draw.sample(range(2, alone.count), 3)):
        place = base(f"second-{at}")
        yield f"a second writer inside call {at}", place, _with_second(small, place / "store", at)
    for at in sorted(draw.sample(range(2, alone.count), 4)):
        place = base(f"killed-{at}")
        yield f"killed before call {at}, then repeated", place, _after_kill(small, place / "store", at)


def _write(small: Small, root: Path, watched: Watched) -> None:
    writer = small.create(root)
    missing = {unit.name for unit in writer.missing()}
    watched.mark(*(unit.name for unit in writer.units() if unit.name not in missing))
    _write_units(small, writer, watched)
    writer.finalize()
    watched.mark("finished")


def _write_units(small: Small, writer: StoreWriter, watched: Watched) -> None:
    for unit in writer.missing():
        small.fill(writer, unit)
        watched.mark(unit.name)


def _with_second(small: Small, root: Path, at: int) -> list[Call]:
    def before(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if number == at:
            _write_units(small, small.create(root), watched)

    watched = Watched(before)
    with installed(watched):
        _write(small, root, watched)
    return watched.log


def _after_kill(small: Small, root: Path, at: int) -> list[Call]:
    def before(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if number == at:
            watched.dead = True
            raise Killed

    watched = Watched(before)
    with installed(watched):
        try:
            _write(small, root, watched)
        except Killed:
            watched.close_left()
        watched.dead, watched.before = False, None
        new_process()
        _write(small, root, watched)
    return watched.log


def states(found: list[Cut], count: int, seed: int) -> Iterator[tuple[Cut, Tree, set[str]]]:
    """`count` different disks drawn over all cuts, each with what was promised before its cut.

    A disk that was found at another cut with the same promises is not repeated.
    """
    draw = random.Random(seed)
    drawn = [(cut, variant) for cut in found for variant in range(VARIANTS)]
    draw.shuffle(drawn)
    seen: set[str] = set()
    for cut, variant in drawn:
        disk = cut.disk()
        tree = disk.state(variant, draw)
        named = sorted((path, b"/" if data is None else hashlib.sha256(data).digest()) for path, data in tree.items())
        key = repr((named, sorted(disk.promised)))
        if key not in seen:
            seen.add(key)
            yield cut, tree, disk.promised
            if len(seen) == count:
                return


def examine(small: Small, tree: Tree, promised: set[str], place: Path, right: dict[str, Any], digest: str) -> list[str]:
    """What one state shows, in words: `served`, `refused ...`, `partial`; what must not be begins with `WRONG`."""
    for path, data in tree.items():
        if data is None:
            (place / path).mkdir(parents=True, exist_ok=True)
        else:
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(data)
    root = place / "store"
    shown = []
    for partial in (False, True):
        try:
            store = Store.open(root, allow_partial=partial)
            found = contents(store)
        except (StoreCorrupt, StoreIncomplete, StoreMissing) as error:
            shown.append(f"refused {type(error).__name__}" if not partial else "no part served")
            held: set[str] = set()
            if "finished" in promised:
                shown.append(f"WRONG: a finished store is refused: {error}")
        else:
            shown.append("part served" if partial else "served")
            shown += [f"WRONG bytes of {name}" for name in differing(found, right)]
            held = set(store.receipts)
        if partial and promised - held - {"finished"}:
            shown.append(f"WRONG: committed units are lost: {sorted(promised - held)}")
    try:
        with installed(Unsynced()):
            store = small.build(root)
    except SherlCacheError as error:
        shown.append(f"WRONG: cannot be finished: {error}")
    else:
        if store.digest != digest:
            shown.append("WRONG digest after the same command")
        shown += [f"WRONG after the same command: {finding.problem}" for finding in store.verify(deep=True)]
        shown += [f"WRONG: {path} is left" for path in root.rglob("*.tmp")]
    return shown


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """One row: states, and what they showed."""
    small = Small()
    with installed(Unsynced()):
        whole = small.build(folder / "whole")
    right, digest = contents(whole), whole.digest
    found = cuts(small, folder, scale.seed)
    shown: Counter[str] = Counter()
    wrong = []
    count = 0
    for count, (cut, tree, promised) in enumerate(states(found, scale.of(1000, 60), scale.seed), 1):
        place = folder / f"state-{count}"
        seen = examine(small, tree, promised, place, right, digest)
        shutil.rmtree(place, ignore_errors=True)
        shown.update(what for what in seen if not what.startswith("WRONG"))
        wrong += [f"{cut.scenario}, cut after call {cut.after}: {what}" for what in seen if what.startswith("WRONG")]
    yield Row(
        "power cut",
        "0 wrong bytes served; the same command ends in the unbroken digest",
        f"{count:,} states of {len(found):,} cuts: {len(wrong)} wrong, {shown['served']} served whole, "
        f"{shown['part served']} in part",
        not wrong and count == scale.of(1000, 60),
        {"states": count, "cuts": len(found), "shown": dict(shown), "wrong": wrong[:20]},
    )
