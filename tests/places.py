"""Copies of a store at every kind of place: what a test does to a store's files, and where the store then is.

`PLACES` is what a fixture is parametrised over; the S3 server is a moto server in a process of its own, on loopback.
"""

import http.client
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest

from sherl_cache.storage import MemoryFiles

PLACES = ("local", "memory", "s3")
BUCKET = "sherl-cache-tests"
CANARY = "canary-that-no-message-may-hold"
_NUMBERS = itertools.count()


class Copy(Protocol):
    """A copy of a store."""

    place: str
    """What `Store.open` and --store take."""

    def paths(self) -> list[str]: ...
    def read(self, path: str) -> bytes: ...
    def write(self, path: str, data: bytes) -> None: ...
    def remove(self, path: str) -> None: ...


class LocalCopy:
    def __init__(self, root: Path, folder: Path) -> None:
        self._root = folder / f"copy-{next(_NUMBERS)}"
        shutil.copytree(root, self._root)
        self.place = str(self._root)

    def paths(self) -> list[str]:
        return files_below(self._root)

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        (self._root / path).parent.mkdir(parents=True, exist_ok=True)
        (self._root / path).write_bytes(data)

    def remove(self, path: str) -> None:
        (self._root / path).unlink()


class MemoryCopy:
    def __init__(self, root: Path) -> None:
        name = f"copy-{next(_NUMBERS)}"
        self.place = f"memory://{name}"
        self._root = root
        self._files = MemoryFiles.named(name).load(root)

    def paths(self) -> list[str]:
        return [path for path in files_below(self._root) if self._files.size(path) is not None]

    def read(self, path: str) -> bytes:
        data = self._files.read(path, 1 << 40)
        assert data is not None
        return data

    def write(self, path: str, data: bytes) -> None:
        self._files.put(path, data)

    def remove(self, path: str) -> None:
        self._files.remove(path)


class S3Copy:
    def __init__(self, root: Path) -> None:
        from obstore.store import S3Store

        prefix = f"stores/copy{next(_NUMBERS):06d}"  # as long as any other, so that none begins another
        self.place = f"s3://{BUCKET}/{prefix}"
        self._store: Any = S3Store(BUCKET, prefix=prefix)
        for path in files_below(root):
            self.write(path, (root / path).read_bytes())

    def paths(self) -> list[str]:
        return sorted(item["path"] for page in self._store.list() for item in page)

    def read(self, path: str) -> bytes:
        return bytes(self._store.get(path).bytes())

    def write(self, path: str, data: bytes) -> None:
        self._store.put(path, data)

    def remove(self, path: str) -> None:
        self._store.delete(path)


MakeCopy = Callable[[Path], Copy]


def copier(kind: str, folder: Path) -> MakeCopy:
    """Copies a store that lies in a folder to a place of that kind; local copies go into `folder`."""
    kinds: dict[str, MakeCopy] = {"local": lambda root: LocalCopy(root, folder), "memory": MemoryCopy, "s3": S3Copy}
    return kinds[kind]


def files_below(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@contextmanager
def s3_server() -> Iterator[str]:
    """Address of an S3 server with one bucket, empty; the environment leads there, past any proxy."""
    script = Path(__file__).with_name("s3_server.py")
    server = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        address = server.stdout.readline().strip()
        assert address, "the S3 server did not start"
        make_bucket(address)
        with pytest.MonkeyPatch.context() as patch:
            lead_to(patch, address)
            yield address
    finally:
        server.stdin.close()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close()


def lead_to(patch: pytest.MonkeyPatch, address: str) -> None:
    """Point the environment's S3 at `address`."""
    for name in ("AWS_SESSION_TOKEN", "AWS_ENDPOINT", "AWS_PROFILE"):
        patch.delenv(name, raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }.items():
        patch.setenv(name, value)


def make_bucket(address: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
    connection.request("PUT", f"/{BUCKET}")
    assert connection.getresponse().status == 200
    connection.close()
