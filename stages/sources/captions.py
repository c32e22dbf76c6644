"""Pictures with captions in folders: a table beside the pictures says which caption belongs to which.

    pairs/captions.csv              pairs/train/captions.csv
    pairs/001.png                   pairs/train/001.png
    pairs/more/002.png              pairs/validation/captions.jsonl      (or val; test counts where neither is there)

`captions.csv`, `.tsv`, `.jsonl` or `.parquet` has the columns `file` (or `file_name`), a path from its own folder, and `caption`.
A picture with several captions has a line for each, or a list of them; it is one row here, where it is named first. File
names and captions are held in memory; pictures are read when they are asked for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ...storage.errors import DataError
from .contract import (
    CAPTION_FILES,
    SPLIT_FOLDERS,
    Picture,
    PictureSource,
    Request,
    Source,
    is_captioned_folder,
    looks_local,
    refuse_validation_file,
)
from .files import open_table

_FILE_COLUMNS: Final = ("file", "file_name")
_CAPTION: Final = "caption"


def opens(data: str) -> bool:
    """Whether `data` is a folder on this machine with a table of captions, or splits of such."""
    return looks_local(data) and is_captioned_folder(data)


def open_source(request: Request) -> Source:
    """The pictures of a folder with their captions. Raises DataError for a table that lacks a column or a value."""
    refuse_validation_file(request)
    return CaptionedFolder(request.data, Path(request.data).expanduser())


class CaptionedFolder(PictureSource):
    """Splits of captioned pictures: the columns `image` and `caption`, the latter a list of texts."""

    scored = (*Source.scored, "test")

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self._pictures: dict[str, list[Path]] = {}
        self._captions: dict[str, list[list[str]]] = {}
        for split, folder in _split_folders(root).items():
            captions = _read(_table(folder), folder)
            self._pictures[split], self._captions[split] = list(captions), list(captions.values())
        self.splits = tuple(self._pictures)

    def columns(self, split: str) -> tuple[str, ...]:
        return ("image", _CAPTION)

    def rows(self, split: str) -> int:
        self.require(split)
        return len(self._pictures[split])

    def take(self, split: str, column: str, rows: Sequence[int]) -> list[Any]:
        self.require(split, [column])
        if column == _CAPTION:
            return [self._captions[split][row] for row in rows]
        return [Picture(str(path), path) for path in (self._pictures[split][row] for row in rows)]


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; `train` for the root itself where it holds no splits."""
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        for name in names:
            if split not in found and any((root / name / file).is_file() for file in CAPTION_FILES):
                found[split] = root / name
    return found if "train" in found else {"train": root}


def _table(folder: Path) -> Path:
    found = [folder / name for name in CAPTION_FILES if (folder / name).is_file()]
    if len(found) != 1:
        said = " and ".join(path.name for path in found) or "none of " + ", ".join(CAPTION_FILES)
        raise DataError(f"{folder}: it holds {said}; one table of captions is wanted")
    return found[0]


def _read(path: Path, folder: Path) -> dict[Path, list[str]]:
    """Captions of every picture, in the order in which the table names them first."""
    table = open_table(path)
    named = next((column for column in _FILE_COLUMNS if column in table.columns), None)
    if named is None or _CAPTION not in table.columns:
        raise DataError(
            f"{path}: it has the columns {', '.join(table.columns)}; {_FILE_COLUMNS[0]} and {_CAPTION} are wanted"
        )
    captions: dict[Path, list[str]] = {}
    row = 0
    for batch in table.batches([named, _CAPTION]):
        for file, value in zip(batch[named], batch[_CAPTION], strict=True):
            row += 1
            texts = value if isinstance(value, list) else [value]
            if (
                not isinstance(file, str)
                or not file
                or not all(isinstance(text, str) and text.strip() for text in texts)
            ):
                raise DataError(
                    f"{path}: row {row} below the header lacks its {named} or its {_CAPTION}; fill it or take it out"
                )
            captions.setdefault(folder / file, []).extend(texts)
    if not captions:
        raise DataError(f"{path}: the table has no rows; at least one picture with a caption is needed")
    return captions
