"""Where a store is: a folder, a prefix of object storage, or a name in this process's memory.

    ./cache, /data/cache, file:///data/cache     a folder
    s3://bucket/prefix, gs://..., az://...       object storage, read through obstore (the extra `remote`)
    memory://name                                what `MemoryFiles.named(name)` holds

The schemes are an allow-list, and a place holds no secrets: credentials come from the environment alone.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from .errors import UsageError
from .readers.contract import Files
from .readers.local import LocalFiles
from .readers.memory import MemoryFiles

OBJECT_STORAGE: Final = ("s3", "gs", "az")
_KNOWN: Final = (*OBJECT_STORAGE, "memory", "file")
_FORMS: Final = "a folder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or memory://name"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class RemotePlace:
    """A place that is no folder; `str` of it is its URL, in which there is nothing secret."""

    scheme: str
    bucket: str
    prefix: str = ""
    """Without a slash at either end."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    def __truediv__(self, path: str) -> "RemotePlace":
        return RemotePlace(self.scheme, self.bucket, f"{self.prefix}/{path}".strip("/"))


Place = Path | RemotePlace


def parse_place(text: str | Place) -> Place:
    """The place that `--store` or a caller names. Raises UsageError, without repeating what may be a secret."""
    if isinstance(text, RemotePlace):
        return text
    if isinstance(text, Path):
        if slashes := re.match(rf"({'|'.join(_KNOWN)}):/", str(text)):
            raise UsageError(
                f"{redacted(str(text))}: a path drops one slash of {slashes[1]}://: give the place as a string"
            )
        return text
    found = re.match(r"([A-Za-z0-9+.:-]*?)(::.*)?://", text)
    if found is None:
        if re.match(rf"({'|'.join(_KNOWN)}):", text):
            raise UsageError(f"{redacted(text)}: a place with a scheme has :// after it, as in s3://bucket/prefix")
        return Path(text)
    if "::" in text:
        raise UsageError(f"{redacted(text)}: chained places are not read: name {_FORMS}")
    scheme = found[1].lower()
    if scheme not in _KNOWN:
        raise UsageError(f"{redacted(text)}: stores are not read from {scheme or 'nothing'}://: name {_FORMS}")
    return _folder(text) if scheme == "file" else _remote(scheme, text)


def local_folder(text: str | Place, doing: str = "written") -> Path:
    """The folder that `text` names. Raises UsageError for any other place, with the way that leads there."""
    place = parse_place(text)
    if isinstance(place, RemotePlace):
        raise UsageError(
            f"{place}: a store is {doing} on a local disk only, where commits are atomic: extract to a local or scratch "
            f"folder and copy it whole (aws s3 cp --recursive ./cache {place}, rclone, or obstore); the copy verifies: "
            f"sherl-cache verify --deep --store {place}"
        )
    return place


def open_files(place: Place) -> Files:
    """The files of the store at a place. Raises UsageError where the extra for object storage is not installed."""
    if isinstance(place, Path):
        return LocalFiles(place)
    if place.scheme == "memory":
        return MemoryFiles.named(place.bucket)
    from .readers.remote import RemoteFiles

    return RemoteFiles(place.scheme, place.bucket, place.prefix)


def redacted(text: str) -> str:
    """A place as messages may show it: what may be userinfo, and everything from a `?` or `#` on, replaced by `***`."""
    text = re.sub(r":(/*).*@", r":\1***@", text, flags=re.DOTALL)
    return re.sub(r"[?#].*", "?***", text, flags=re.DOTALL)


def _folder(text: str) -> Path:
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not parts.path.startswith("/"):
        raise UsageError(f"{redacted(text)}: a file:// place is file:///absolute/folder")
    return Path(unquote(parts.path))


def _remote(scheme: str, text: str) -> RemotePlace:
    rest = text.partition("://")[2]
    if "@" in rest.partition("/")[0] or "?" in rest or "#" in rest:
        raise UsageError(
            f"{redacted(text)}: a place holds no user, password, query or fragment: credentials come from the "
            f"environment, and the place is {scheme}://bucket/prefix"
        )
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    segments = prefix.split("/") if prefix else []
    if not _NAME.fullmatch(bucket) or (scheme == "memory" and segments):
        raise UsageError(f"{redacted(text)}: names no bucket or container: name {_FORMS}")
    if any(part in ("", ".", "..") or not part.isprintable() or "\\" in part for part in segments):
        raise UsageError(f"{redacted(text)!r}: the parts of a prefix are names, not empty, '.' or '..'")
    return RemotePlace(scheme, bucket, prefix)
