"""A file of a store as Python's binary file, for libraries that want one: nothing is opened by path."""

import io
from typing import TYPE_CHECKING

from .contract import Files

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class FileHandle(io.RawIOBase):
    """Reads one file through `Files.read_range`. Not for several threads at a time: it has one position."""

    def __init__(self, files: Files, path: str, size: int) -> None:
        super().__init__()
        self._files, self._path, self._size = files, path, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        out = memoryview(buffer).cast("B")
        count = max(min(out.nbytes, self._size - self._at), 0)
        if count:
            self._files.read_range(self._path, self._at, out[:count])
            self._at += count
        return count
