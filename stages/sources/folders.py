"""Pictures in folders: one folder a class, by its name, or folders of splits that hold those.

    pictures/cat/001.png            pictures/train/cat/001.png
    pictures/dog/001.png            pictures/validation/cat/002.png      (or val; test counts where neither is there)

Rows take turns: the first picture of each class, then the second of each, so that the first N rows are of all classes.
The names of files are held in memory; pictures are read when they are asked for.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...storage.errors import AccessDenied, DataError
from .contract import (
    PICTURE_SUFFIXES,
    SPLIT_FOLDERS,
    Picture,
    PictureSource,
    Request,
    Source,
    is_captioned_folder,
    is_picture_folder,
    looks_local,
    refuse_validation_file,
)


def opens(data: str) -> bool:
    """Whether `data` is a folder on this machine that holds folders of pictures."""
    return looks_local(data) and is_picture_folder(data) and not is_captioned_folder(data)


def open_source(request: Request) -> Source:
    """The pictures of a folder. Raises DataError for a class without pictures, and for splits whose classes differ."""
    refuse_validation_file(request)
    return FolderSource(request.data, Path(request.data).expanduser())


class FolderSource(PictureSource):
    """Splits of class folders: the columns `image` and `label`, the name of the class; classes are numbered in
    the order of their names."""

    scored = (*Source.scored, "test")

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        folders = _split_folders(root)
        classes = {split: _class_folders(folder) for split, folder in folders.items()}
        self.splits = tuple(folders)
        self._labels = tuple(classes.get("train") or next(iter(classes.values())))
        for split, found in classes.items():
            for label, folder in found.items():
                if label not in self._labels:
                    raise DataError(f"{folder}: a class of split {split!r} that the split {self.splits[0]!r} lacks")
        self._files = {split: _taking_turns(found, self._labels) for split, found in classes.items()}

    def columns(self, split: str) -> tuple[str, ...]:
        return ("image", "label")

    def rows(self, split: str) -> int:
        self.require(split)
        return len(self._files[split])

    def class_names(self, split: str, column: str) -> tuple[str, ...] | None:
        return self._labels if column == "label" else None

    def take(self, split: str, column: str, rows: Sequence[int]) -> list[Any]:
        self.require(split, [column])
        chosen = [self._files[split][row] for row in rows]
        if column == "label":
            return [self._labels[label] for label, _ in chosen]
        return [Picture(str(path), path) for _, path in chosen]


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; `train` for the root itself where it holds no splits."""
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        for name in names:
            if split not in found and is_picture_folder(str(root / name)):
                found[split] = root / name
    return found if "train" in found else {"train": root}


def _class_folders(folder: Path) -> dict[str, Path]:
    """Folders by the name of their class, in order; hidden ones are left out."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except PermissionError:
        raise AccessDenied(f"{folder}: the system refuses to list it; make it readable") from None
    return {entry.name: entry for entry in entries}


def _taking_turns(classes: Mapping[str, Path], labels: Sequence[str]) -> list[tuple[int, Path]]:
    """Label and file of every row."""
    files: list[Path] = []
    owners: list[int] = []
    turns: list[int] = []
    for name, folder in classes.items():
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
        if not found:
            raise DataError(
                f"{folder}: the class {name!r} has no picture ({', '.join(PICTURE_SUFFIXES)}); add some or remove the folder"
            )
        files += found
        owners += [labels.index(name)] * len(found)
        turns += range(len(found))
    order = np.lexsort((owners, turns))  # by turn, then by class
    return [(owners[row], files[row]) for row in order.tolist()]
