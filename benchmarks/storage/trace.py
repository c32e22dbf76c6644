"""Proof from outside that nothing else writes to a store: strace beside the record of the seam.

A process writes a store with every call at the seam noted; strace notes every call of that process and its children that
can change a file system. Each of those that touches the store's folder must be one of the noted ones, in number and in names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from .row import Row, Scale

if TYPE_CHECKING:
    from collections.abc import Iterator

CALLS = (
    "open,openat,openat2,creat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mkdir,mkdirat,"
    "truncate,ftruncate,fallocate,chmod,fchmodat,chown,fchownat,lchown,mknod,mknodat,utimensat,setxattr,write,pwrite64,writev,"
    "pwritev,pwritev2,copy_file_range,sendfile,mmap"
)
_WRITES = (
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "pwritev2",
    "copy_file_range",
    "sendfile",
    "ftruncate",
    "fallocate",
)
_SEAM = {"openat": "open", "renameat": "rename", "renameat2": "rename_new", "linkat": "link", "unlinkat": "unlink"}
_SEAM |= {"mkdirat": "mkdir"}
_LINE = re.compile(r"^(?:\d+\s+)?(?P<name>\w+)\((?P<rest>.*)\)\s+= (?P<answer>-?\d+|0x[0-9a-f]+)")
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')
_DESCRIPTOR = re.compile(r"^(\d+)<([^>]*)>")

# The seam is noted by a process of its own, which then runs what it was given.
_NOTED = """
import atexit, json, os, runpy, sys
from benchmarks.storage.seam import NAMES
from sherl_cache.storage import system
note = open(sys.argv[1], "a", buffering=1)
class Noted(system.System):
    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name not in NAMES:
            return found
        def noted(*arguments):
            answer = found(*arguments)
            kept = [value if isinstance(value, (str, int)) else None for value in arguments]
            print(json.dumps([name, kept, answer if name == "open" else None]), file=note)
            return answer
        return noted
system.system = Noted()
exec(sys.argv[2])
"""

SMALL = "from pathlib import Path; from benchmarks.storage.small import Small; Small().build(Path({root!r}))"


def traced(code: str, root: Path, folder: Path) -> tuple[Counter[str], Counter[str], str]:
    """Changes below `root` while `code` runs, as strace saw them and as the seam noted them: `call path`; what went wrong."""
    trace, noted = folder / "trace", folder / "noted"
    command = ["strace", "-f", "-y", "-qq", "-s", "4096", "-e", f"trace={CALLS}", "-o", str(trace)]
    command += [sys.executable, "-c", _NOTED, str(noted), code]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if ended.returncode:
        return Counter(), Counter(), ended.stderr.strip().rpartition("\n")[2] or f"ended with {ended.returncode}"
    with trace.open(errors="replace") as lines:
        seen = Counter(change for line in lines if (change := _change(line, str(root))) is not None)
    return seen, _noted(noted, str(root)), ""


def _change(line: str, root: str) -> str | None:
    """What a line of strace changed below `root`: `call path`; None where nothing."""
    found = _LINE.match(line)
    if found is None or found["answer"].startswith("-"):
        return None
    name, rest = found["name"], found["rest"]
    if name in _WRITES or name == "mmap":
        held = _DESCRIPTOR.match(rest) if name != "mmap" else re.search(r"(\d+)<([^>]*)>", rest)
        if held is None or not held[2].startswith(root):
            return None
        if name == "mmap" and not ("PROT_WRITE" in rest and "MAP_SHARED" in rest):
            return None
        return f"{name} {held[2]}"
    paths = [path for path in _PATH.findall(rest) if path.startswith(root)]
    if not paths:
        return None
    if name in ("open", "openat", "openat2") and not re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND", rest):
        return None
    return " ".join([_SEAM.get(name, name), *paths])


def _noted(path: Path, root: str) -> Counter[str]:
    opened: dict[int, str] = {}
    found: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        name, arguments, answer = json.loads(line)
        if name == "open":
            opened[answer] = arguments[0]
        if name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            continue
        if name in ("close", "fsync"):
            continue
        paths = [opened[arguments[0]]] if name == "writev" else [value for value in arguments if isinstance(value, str)]
        if any(path.startswith(root) for path in paths):
            found[" ".join([name, *paths])] += 1
    return found


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """One row: calls that strace saw and the seam did not note, or the other way round."""
    goal = "every change of a store's folder is a call at the seam"
    if shutil.which("strace") is None:
        yield Row("nothing else writes", goal, "not measured: strace is not installed", None)
        return
    root = folder / "store"
    seen, noted, problem = traced(SMALL.format(root=str(root)), root, folder)
    if problem:
        yield Row("nothing else writes", goal, f"not measured: {problem}", None)
        return
    outside, unseen = seen - noted, noted - seen
    yield Row(
        "nothing else writes",
        goal,
        f"{seen.total():,} changes seen by strace, {outside.total()} beside the seam, {unseen.total()} noted but not seen",
        not outside and not unseen and seen.total() > 0,
        {
            "outside": dict(outside),
            "unseen": dict(unseen),
            "calls": dict(Counter(c.split()[0] for c in seen.elements())),
        },
    )
