"""What a source of rows is: splits, columns and a stream of row batches that can be read again and again.

A source file (`hub.py`, `files.py`, `builtin.py`) offers two functions and is found by its file name:
`opens(data) -> bool`, cheap and without a network, and `open_source(request) -> Source`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeAlias

from ...storage.errors import AccessDenied, DataError
from ...storage.nearest import did_you_mean

BATCH_ROWS: Final = 1024
"""Most rows in one batch of a source."""

BUILTIN: Final = "builtin/"
"""Names with this prefix never mean a file or a hub repository."""

FILE_SUFFIXES: Final = (".csv", ".json", ".jsonl", ".parquet", ".tsv")
PICTURE_SUFFIXES: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

SPLIT_FOLDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
"""Names of the folder of each split, where pictures lie in folders."""
CAPTION_FILES: Final = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.json", "captions.parquet")
"""Names of the table that says which caption belongs to which picture of its folder."""

PICTURE_BATCH_ROWS: Final = 64
"""Most rows in one batch that holds pictures."""

Batch: TypeAlias = dict[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class FileLayout:
    """How one task of a public benchmark lies in a folder of tab-separated files.

    `columns` maps our column name to the header of the file, or to a position from 0 where there is no header.
    `splits` maps our split name to the file's stem.
    """

    columns: Mapping[str, str | int]
    header: bool = True
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "validation": "dev"})


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asked for; `layout` is set when the task named is one whose folder layout is known."""

    data: str
    task: str | None = None
    validation: str | None = None
    revision: str | None = None
    layout: FileLayout | None = None


@dataclass(frozen=True)
class Picture:
    """An encoded picture, such as a PNG or a JPEG: its bytes or its file. `name` is for messages."""

    name: str
    data: bytes | Path

    def read(self) -> bytes:
        """The bytes. Raises DataError where the file is not there, AccessDenied where the system refuses to read it."""
        if isinstance(self.data, bytes):
            return self.data
        try:
            return self.data.read_bytes()
        except PermissionError:
            raise AccessDenied(f"{self.name}: the system refuses to read it; make it readable") from None
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read as a picture ({error.strerror or error})") from None


class Source(ABC):
    """Rows by split and column. `name` is what the user typed: for messages, never part of an identity."""

    name: str
    splits: tuple[str, ...]
    task: str | None = None
    """The task that the data itself names, as `glue/sst2` does."""
    synthetic: bool = False
    """Whether the rows were made by a program; reported wherever a score on them is."""
    scored: tuple[str, ...] = ("validation", "validation_matched")
    """Splits that official scores are taken on; the first that is there counts."""

    @abstractmethod
    def columns(self, split: str) -> tuple[str, ...]:
        """Column names of a split, in the order of the data."""

    @abstractmethod
    def rows(self, split: str) -> int:
        """Number of rows of a split; counting a file reads it once."""

    @abstractmethod
    def batches(self, split: str, columns: Sequence[str]) -> Iterator[Batch]:
        """Rows in order, the same at each call, at least one and at most `BATCH_ROWS` at a time.

        Raises DataError for a split or a column that is not there, and for rows that cannot be read.
        """

    def class_names(self, split: str, column: str) -> tuple[str, ...] | None:
        """Names of the classes that whole numbers of the column stand for, where the data says so."""
        return None

    def picture_columns(self, split: str) -> tuple[str, ...]:
        """Columns whose values are pictures: `batches` gives a `Picture` for each, or None where a row has none."""
        return ()

    def take(self, split: str, column: str, rows: Sequence[int]) -> list[Any]:
        """Values of one column at some rows, by their numbers in the split `origin(split)`, in the order asked for.

        Sources of pictures offer it, since pictures are not kept. Raises DataError.
        """
        raise DataError(f"{self.name}: rows of column {column!r} can be read in their order only")

    def origin(self, split: str) -> str:
        """The split of the underlying data that these rows come from."""
        return split

    def row_numbers(self, split: str) -> Iterable[int]:
        """For each row of `batches`, its number in the split `origin(split)`, from 0."""
        return count()

    def require(self, split: str, columns: Sequence[str] = ()) -> None:
        """Raise DataError unless the split and its columns are there."""
        if split not in self.splits:
            raise DataError(
                f"{self.name}: no split {split!r}{did_you_mean(split, self.splits)}; "
                f"it has {', '.join(self.splits) or 'none'}"
            )
        present = self.columns(split)
        for column in columns:
            if column not in present:
                raise DataError(
                    f"{self.name}: split {split!r} has no column {column!r}{did_you_mean(column, present)}; "
                    f"it has {', '.join(present)}"
                )


class PictureSource(Source):
    """Rows of one picture, in the column `image`, and what belongs to it; any of them can be taken by its number."""

    @abstractmethod
    def take(self, split: str, column: str, rows: Sequence[int]) -> list[Any]: ...

    def batches(self, split: str, columns: Sequence[str]) -> Iterator[Batch]:
        self.require(split, columns)
        count = self.rows(split)
        for start in range(0, count, PICTURE_BATCH_ROWS):
            rows = range(start, min(start + PICTURE_BATCH_ROWS, count))
            yield {column: self.take(split, column, rows) for column in columns}

    def picture_columns(self, split: str) -> tuple[str, ...]:
        return ("image",)


def refuse_validation_file(request: Request) -> None:
    """Raise DataError where a validation file was named for data that brings its own splits."""
    if request.validation is not None:
        raise DataError(
            f"{request.data} brings its own splits, so the validation file {request.validation} has no place; "
            "leave it out, or give both as files"
        )


def looks_local(data: str) -> bool:
    """Whether a name means a place on this machine: it exists, or it is written as a path or a file."""
    if data.startswith(BUILTIN):
        return False
    written_as_path = data.startswith(("/", "./", "../", "~")) or data.lower().endswith(FILE_SUFFIXES)
    return written_as_path or Path(data).exists()


def is_picture_folder(data: str) -> bool:
    """Whether a folder holds folders of pictures, or splits of such."""
    folder = Path(data).expanduser()
    if not folder.is_dir():
        return False
    found = (path for depth in ("*/*", "*/*/*") for path in folder.glob(depth))
    return any(path.suffix.lower() in PICTURE_SUFFIXES for path in found)


def is_captioned_folder(data: str) -> bool:
    """Whether a folder holds a table of captions, or splits of such."""
    folder = Path(data).expanduser()
    places = [folder, *(folder / name for names in SPLIT_FOLDERS.values() for name in names)]
    return any((place / name).is_file() for place in places for name in CAPTION_FILES)


def is_saved_dataset(data: str) -> bool:
    """Whether a folder was written by `save_to_disk` of the library `datasets`."""
    folder = Path(data).expanduser()
    one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return one or (folder / "dataset_dict.json").is_file()
