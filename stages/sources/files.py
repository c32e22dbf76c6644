"""Files on this machine as a source: csv, tsv, json lines, parquet, and folders of GLUE files.

Files are streamed, never held. Delimited files give every value as text, so a column's type cannot change in
the middle of a file; `tasks` reads numbers out of labels. In .tsv files quotes are plain characters, as GLUE
writes them; .csv files follow the usual quoting rules.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ...storage.errors import AccessDenied, DataError
from ...storage.nearest import did_you_mean
from .contract import (
    BATCH_ROWS,
    FILE_SUFFIXES,
    Batch,
    FileLayout,
    Request,
    Source,
    is_captioned_folder,
    is_picture_folder,
    is_saved_dataset,
    looks_local,
    refuse_validation_file,
)

_BLOCK_BYTES = 4 << 20  # the longest line that can be read; two blocks are in memory at a time


def opens(data: str) -> bool:
    """Whether `data` is a file or folder for this module."""
    pictures = is_picture_folder(data) or is_captioned_folder(data)
    return looks_local(data) and not is_saved_dataset(data) and not pictures


def open_source(request: Request) -> Source:
    """The file (with its validation file) or the folder of GLUE files that the request names.

    Raises DataError for a place that is not there, an unknown format, an empty file or a folder without its
    files; AccessDenied where the system refuses to read.
    """
    path = Path(request.data).expanduser()
    _require_place(path)
    if path.is_dir():
        refuse_validation_file(request)
        return _open_folder(path, request)
    tables = {"train": open_table(path)}
    if request.validation is not None:
        other = Path(request.validation).expanduser()
        _require_place(other)
        tables["validation"] = open_table(other)
    return FileSource(request.data, tables)


class Table(ABC):
    """One file as a stream of row batches."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Column names in the order of the file."""

    @abstractmethod
    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """Rows in order, at most `BATCH_ROWS` at a time."""

    @cached_property
    def rows(self) -> int:
        """Number of rows, counted by reading one column."""
        first = self.columns[0]
        return sum(len(batch[first]) for batch in self.batches([first]))


class DelimitedTable(Table):
    """A csv file, or a tsv file without quoting; all values are text. Without header columns are f0, f1, .."""

    def __init__(self, path: Path, *, header: bool = True) -> None:
        super().__init__(path)
        tabs = path.suffix.lower() == ".tsv"
        self._read = pa.csv.ReadOptions(block_size=_BLOCK_BYTES, autogenerate_column_names=not header)
        self._parse = pa.csv.ParseOptions(
            delimiter="\t" if tabs else ",", quote_char=False if tabs else '"', newlines_in_values=not tabs
        )

    @cached_property
    def columns(self) -> tuple[str, ...]:
        with _reading(self.path), self._open(pa.csv.ConvertOptions()) as reader:
            return tuple(reader.schema.names)

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        options = pa.csv.ConvertOptions(
            include_columns=list(columns),
            column_types=dict.fromkeys(columns, pa.string()),
            strings_can_be_null=False,
        )
        with _reading(self.path), self._open(options) as reader:
            for batch in reader:
                yield from _slices(batch)

    def _open(self, options: Any) -> Any:
        return pa.csv.open_csv(self.path, read_options=self._read, parse_options=self._parse, convert_options=options)


class JsonLinesTable(Table):
    """A file of one JSON object a line. The first object names the columns; a key missing later is null."""

    @cached_property
    def columns(self) -> tuple[str, ...]:
        for row in self._objects():
            return tuple(row)
        raise DataError(f"{self.path}: the file is empty; rows of one JSON object a line are wanted")

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        batch: Batch = {column: [] for column in columns}
        count = 0
        for row in self._objects():
            for column in columns:
                batch[column].append(row.get(column))
            count += 1
            if count == BATCH_ROWS:
                yield batch
                batch, count = {column: [] for column in columns}, 0
        if count:
            yield batch

    def _objects(self) -> Iterator[dict[str, Any]]:
        with _reading(self.path), self.path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(
                        f"{self.path}: line {number} is not JSON ({error.msg}); one object a line is wanted"
                    ) from None
                if not isinstance(row, dict):
                    raise DataError(f"{self.path}: line {number} is no JSON object; one object a line is wanted")
                yield row


class ParquetTable(Table):
    """A parquet file; values keep their types."""

    @cached_property
    def columns(self) -> tuple[str, ...]:
        with _reading(self.path), pa.parquet.ParquetFile(self.path) as file:
            return tuple(file.schema_arrow.names)

    @cached_property
    def rows(self) -> int:
        with _reading(self.path), pa.parquet.ParquetFile(self.path) as file:
            return int(file.metadata.num_rows)

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        with _reading(self.path), pa.parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns)):
                yield from _slices(batch)


class FileSource(Source):
    """Tables by split; `names` maps our column names to those of the files."""

    def __init__(
        self,
        name: str,
        tables: Mapping[str, Table],
        names: Mapping[str, str] | None = None,
        task: str | None = None,
    ) -> None:
        self.name = name
        self.splits = tuple(tables)
        self.task = task
        self._tables = dict(tables)
        self._names = names
        for table in tables.values():
            _require_rows(table)
        if names is not None:
            for split in tables:
                self.require(split, tuple(names))

    def columns(self, split: str) -> tuple[str, ...]:
        present = self._tables[split].columns
        if self._names is None:
            return present
        return tuple(ours for ours, theirs in self._names.items() if theirs in present)

    def rows(self, split: str) -> int:
        self.require(split)
        return self._tables[split].rows

    def batches(self, split: str, columns: Sequence[str]) -> Iterator[Batch]:
        self.require(split, columns)
        names = {column: self._names[column] if self._names else column for column in columns}
        for batch in self._tables[split].batches(list(dict.fromkeys(names.values()))):
            yield {ours: batch[theirs] for ours, theirs in names.items()}


def _open_folder(folder: Path, request: Request) -> Source:
    layout = request.layout
    if layout is None:
        raise DataError(
            f"{request.data}: a folder of GLUE files is read by its task, which was not named; name one, "
            "e.g. --task sst2, or give one file as --data and another as --validation; pictures lie in one folder a class"
        )
    tables: dict[str, Table] = {}
    for split, stem in layout.splits.items():
        path = folder / f"{stem}.tsv"
        if path.is_file():
            tables[split] = DelimitedTable(path, header=layout.header)
    if "train" not in tables and "validation" not in tables:
        wanted = ", ".join(f"{stem}.tsv" for stem in layout.splits.values())
        present = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
        raise DataError(f"{request.data}: none of {wanted} is there for task {request.task}; it holds {present}")
    return FileSource(request.data, tables, _layout_names(layout), request.task)


def _layout_names(layout: FileLayout) -> dict[str, str]:
    """Our column names to the file's; a file without header has f0, f1, ..."""
    return {ours: theirs if isinstance(theirs, str) else f"f{theirs}" for ours, theirs in layout.columns.items()}


def open_table(path: Path) -> Table:
    """One file as a table, by its suffix. Raises DataError."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return DelimitedTable(path)
    if suffix in (".json", ".jsonl"):
        return JsonLinesTable(path)
    if suffix == ".parquet":
        return ParquetTable(path)
    raise DataError(f"{path}: unknown format {suffix or 'without suffix'!r}; {', '.join(FILE_SUFFIXES)} are read")


def _require_place(path: Path) -> None:
    if path.exists():
        return
    try:
        siblings = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        raise DataError(f"{path}: no such file, and no folder {path.parent} that can be listed") from None
    raise DataError(f"{path}: no such file or folder{did_you_mean(path.name, siblings)}")


def _require_rows(table: Table) -> None:
    columns = table.columns
    if len(set(columns)) < len(columns):
        twice = sorted({column for column in columns if columns.count(column) > 1})
        raise DataError(
            f"{table.path}: column {twice[0]!r} is there more than once; every column needs a name of its own"
        )
    if not columns or next(table.batches(columns[:1]), None) is None:
        raise DataError(f"{table.path}: the file has no rows; at least one is needed below the header")


class _reading:
    """Turns what a library says about a file into our errors, which name the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        if self._path.stat().st_size == 0:
            raise DataError(f"{self._path}: the file is empty; rows with named columns are wanted")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, PermissionError):
            raise AccessDenied(f"{self._path}: the system refuses to read it; make it readable") from None
        if isinstance(error, UnicodeDecodeError):
            raise DataError(f"{self._path}: the file is not UTF-8 text ({error.reason}); save it as UTF-8") from None
        if isinstance(error, pa.ArrowException):
            raise DataError(f"{self._path}: cannot be read: {str(error).splitlines()[0]}") from None


def _slices(batch: Any) -> Iterator[Batch]:
    for start in range(0, batch.num_rows, BATCH_ROWS):
        yield batch.slice(start, BATCH_ROWS).to_pydict()
