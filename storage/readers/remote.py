"""Raw bytes from object storage (S3, Google Cloud Storage, Azure), through obstore.

Sizes and names come from a listing of the store's prefix that is taken once, when they are first asked for; small files
are fetched whole, shards by ranges. What fails for a moment is tried again with growing pauses, a bounded number of
times; then RemoteUnavailable. Credentials, region and endpoint come from the environment (AWS_*, GOOGLE_*, AZURE_*), or
from the role of the cloud machine that obstore asks where there are none;
and no text of the library reaches a message, since it may quote a signed address.
"""

import hashlib
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

from ..documents import is_relative_path
from ..errors import AccessDenied, RemoteUnavailable, StoreCorrupt, UsageError

Result = TypeVar("Result")

REQUEST_BYTES: Final = 8 << 20
"""The most that one request asks for: what a slow line brings within the library's time limit of 30 s."""
_LISTED: Final = 1000
_ATTEMPTS: Final = 3
"""Of a whole request, body and all; within each the library tries again what fails before the body."""
_RETRY: Final[dict[str, Any]] = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}
_STORES: Final = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}


class RemoteFiles:
    """The files of one store below a prefix of a bucket; any number of threads may read at a time."""

    request_bytes = REQUEST_BYTES
    copies: Final = 1

    def __init__(self, scheme: str, bucket: str, prefix: str) -> None:
        """Raises UsageError where obstore is not installed or the environment has settings that it refuses."""
        self._url = f"{scheme}://{bucket}" + (f"/{prefix}" if prefix else "")
        try:
            import obstore.store
        except ImportError:
            raise UsageError(
                f"{self._url}: object storage needs obstore, which is not installed: pip install 'sherl-cache[remote]'"
            ) from None
        self._library = obstore
        try:
            self._store: Any = getattr(obstore.store, _STORES[scheme])(
                bucket, prefix=prefix or None, retry_config=_RETRY
            )
        except (obstore.exceptions.BaseError, ValueError, TypeError):
            raise UsageError(
                f"{self._url}: cannot be used with the settings in the environment: for az the account "
                "(AZURE_STORAGE_ACCOUNT_NAME), for all of them the credentials, must be whole"
            ) from None
        self._listed: dict[str, dict[str, int]] = {}
        self._lock = threading.Lock()

    def place(self, path: str) -> str:
        """A path as messages show it; the store's own place for an empty one."""
        return f"{self._url}/{path}" if path else self._url

    def size(self, path: str) -> int | None:
        """Bytes of a file when its folder was listed; None where there was none."""
        self._check(path)
        top, slash, _ = path.partition("/")
        if slash:
            return self._sizes(top).get(path)
        head: Any = self._ask(path, lambda: self._library.head(self._store, path))
        return None if head is None else int(head["size"])

    def read(self, path: str, limit: int) -> bytes | None:
        """A whole file of at most `limit` bytes, a large one in pieces; None where there is none."""
        self._check(path)

        def fetch() -> tuple[int, bytes | None]:
            found = self._library.get(self._store, path)
            size = int(found.meta["size"])
            return size, bytes(found.bytes()) if size <= min(limit, self.request_bytes) else None

        found = self._ask(path, fetch)
        if found is None:
            return None
        size, data = found
        if size > limit:
            raise StoreCorrupt(f"{self.place(path)}: {size:,} bytes, at most {limit:,} can be right")
        if data is not None:
            return data
        whole = bytearray(size)
        for start in range(0, size, self.request_bytes):
            self._fill(path, start, memoryview(whole)[start : start + self.request_bytes])
        return bytes(whole)

    def read_range(self, path: str, offset: int, out: memoryview) -> None:
        """Fill `out` with bytes of a file from `offset` on; holds them twice while it runs."""
        size = self._present(path)
        if size - offset < out.nbytes:
            raise StoreCorrupt(f"{self.place(path)}: the file ends at byte {size:,}, more is needed")
        if out.nbytes:
            self._fill(path, offset, out.cast("B"))

    def digest(self, path: str) -> tuple[int, str]:
        """Bytes and sha256 of a file, read in pieces."""
        size = self._present(path)
        hasher, piece = hashlib.sha256(), memoryview(bytearray(min(size, self.request_bytes)))
        for start in range(0, size, self.request_bytes):
            out = piece[: size - start]
            self._fill(path, start, out)
            hasher.update(out)
        return size, hasher.hexdigest()

    def names(self, folder: str) -> list[str]:
        """Names in a folder when it was listed, sorted; none where there was no such folder."""
        self._check(folder)
        start = f"{folder}/"
        listed = self._sizes(folder.partition("/")[0])
        return sorted({path[len(start) :].partition("/")[0] for path in listed if path.startswith(start)})

    def _present(self, path: str) -> int:
        size = self.size(path)
        if size is None:
            raise StoreCorrupt(f"{self.place(path)}: the file is missing")
        return size

    def _fill(self, path: str, offset: int, out: memoryview) -> None:
        """One range request."""
        data: Any = self._ask(path, lambda: self._library.get_range(self._store, path, start=offset, length=out.nbytes))
        if data is None:
            raise StoreCorrupt(f"{self.place(path)}: the file vanished while the store was open")
        if len(data) != out.nbytes:
            raise StoreCorrupt(f"{self.place(path)}: the file became shorter while the store was open")
        out[:] = memoryview(data).cast("B")

    def _sizes(self, top: str) -> dict[str, int]:
        """Bytes of every file below a folder of the store's own, listed once."""
        with self._lock:
            if top not in self._listed:

                def fetch() -> dict[str, int]:
                    pages = self._library.list(self._store, prefix=top, chunk_size=_LISTED)
                    return {str(item["path"]): int(item["size"]) for page in pages for item in page}

                self._listed[top] = self._ask(top, fetch) or {}
            return self._listed[top]

    def _ask(self, path: str, fetch: Callable[[], Result]) -> Result | None:
        """What `fetch` gives, None where the object is not there. Raises AccessDenied and RemoteUnavailable."""
        known = self._library.exceptions
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return fetch()
            except FileNotFoundError:
                return None
            except (known.PermissionDeniedError, known.UnauthenticatedError):
                raise AccessDenied(
                    f"{self.place(path)}: the credentials in the environment may not read this: objects must be readable "
                    "and the prefix listable (AWS_PROFILE and ~/.aws are not read)"
                ) from None
            except (known.BaseError, OSError, TimeoutError) as error:
                status = _status(error)
                if status == 404:
                    return None
                if status == 416:
                    raise StoreCorrupt(
                        f"{self.place(path)}: the file became shorter while the store was open"
                    ) from None
                if status is not None and 300 <= status < 500 and status not in (408, 429):
                    raise AccessDenied(
                        f"{self.place(path)}: the server refuses the request with status {status}: see that bucket, "
                        "region, endpoint and credentials in the environment belong together (AWS_PROFILE and ~/.aws are "
                        "not read)"
                    ) from None
                if attempt == _ATTEMPTS:
                    what = "does not answer" if status is None else f"answers with status {status}"
                    raise RemoteUnavailable(
                        f"{self.place(path)}: the server {what}, also when tried again: see the network, the endpoint "
                        "and the credentials in the environment; the same command goes on from what was saved"
                    ) from None
            time.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")

    def _check(self, path: str) -> None:
        if not is_relative_path(path):
            raise StoreCorrupt(f"{path!r} is not a name that a store may hold")


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of the library tells of."""
    found = re.search(r"status code: (\d{3})\b", str(error))
    return None if found is None else int(found[1])
