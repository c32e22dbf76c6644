"""What may be found on a disk after power was lost, from the calls that it was told: what POSIX leaves open.

* Of a file, what was written before its last successful fsync is there. Of later writes anything may be: nothing, all, a
  prefix, the full length with zeros behind some point, or the full length with sectors missing in the middle.
* Of a folder, every link, rename, unlink, mkdir and creation before its last successful fsync is there. Of later ones any
  subset may be, whatever their order; each is there whole or not at all. An fsync of a file says nothing of its name.
* A folder that is lost takes with it all that is in it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from .seam import Call

SECTOR = 64  # small, since the files of this store are
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
    """What a disk was told so far, below a folder that was there before; `before`: what the folder held, durable."""

    def __init__(self, base: Path, before: Tree | None = None) -> None:
        self.base = str(base)
        self.files: list[File] = []
        self.folders = {"": Folder()}
        self.descriptors: dict[int, tuple[str, Any]] = {}
        self.promised: set[str] = set()
        for path, data in sorted((before or {}).items()):
            folder, _, name = path.rpartition("/")
            if data is None:
                self.folders[path] = Folder()
            else:
                self.files.append(File(data, data))
            self._change(folder, Change(name, -1 if data is None else len(self.files) - 1))
        for held in self.folders.values():
            held.synced = len(held.changes)

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
