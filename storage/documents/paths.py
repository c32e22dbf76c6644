"""Names and paths of a store. Names in a document become paths, so they are limited to what cannot leave the store."""

import re
from typing import Annotated, Final

from pydantic import StringConstraints

PLAN: Final = "sherl/plan.json"
_PART: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
_PATH: Final = rf"{_PART}(/{_PART}){{0,7}}"
_PATH_CHARACTERS: Final = 512

Name = Annotated[str, StringConstraints(pattern=rf"^{_PART}$")]
RelativePath = Annotated[str, StringConstraints(pattern=rf"^{_PATH}$", max_length=_PATH_CHARACTERS)]


def is_relative_path(text: str) -> bool:
    """Whether `text` is a path that documents may hold."""
    return len(text) <= _PATH_CHARACTERS and re.fullmatch(_PATH, text) is not None


def array_path(split: str, stream: str, tap: int) -> str:
    """Path of an array in the store: `train/encoder/h03`."""
    return f"{split}/{stream}/h{tap:02d}"


def shard_path(array: str, unit_index: int) -> str:
    """Path of the file that holds one unit of an array."""
    return f"{array}/c/{unit_index}/0"


def table_path(split: str, part: int = 1) -> str:
    """Path of the example table of a split, or of a part that was added to it: 2, 3, ..."""
    return f"sherl/examples/{split}.parquet" if part == 1 else f"sherl/examples/{split}.{part}.parquet"


def plan_path(number: int) -> str:
    """Path of plan `number`, counted from 1."""
    return PLAN if number == 1 else f"sherl/plan-{number}.json"
