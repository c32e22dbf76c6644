"""Names of processes that write: one that has certainly ended can be told from one that may be at work.

    <place>-<pid>-<token>    place: host, boot and process namespace; token: drawn once a process

Two containers with one host name are two places, and so is one host before and after a reboot. A process number
that was given to another process does not count as ended, except where that other process is this one.
"""

import functools
import hashlib
import os
import re
import secrets
import socket
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"^(?P<place>[A-Za-z0-9_]*)-(?P<pid>\d{1,19})-(?P<token>[0-9a-f]+)")


def process_name() -> str:
    """The name of this process."""
    return _name_of(os.getpid())


def is_gone(name: str) -> bool:
    """Whether the process that `name` begins with has certainly ended; False where that cannot be known from here."""
    found = _NAME.match(name)
    if found is None or found["place"] != _place():
        return False
    pid = int(found["pid"])
    if pid == os.getpid():
        return not process_name().endswith(f"-{found['token']}")
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return _is_zombie(pid)


@functools.cache
def _name_of(pid: int) -> str:  # by process number, since a fork inherits the cache
    return f"{_place()}-{pid}-{secrets.token_hex(4)}"


@functools.cache
def _place() -> str:
    host = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:64]
    marks = []
    for read in (_boot, _namespace):
        try:
            marks.append(read())
        except OSError:  # not Linux, or no /proc
            marks.append("")
    return f"{host}_{hashlib.sha256(':'.join(marks).encode()).hexdigest()[:12]}"


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and its parent has not asked how; False where there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in ("Z", "X")


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")
