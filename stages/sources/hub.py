"""Data sets read by the library `datasets`: from a hub, or from a folder that `save_to_disk` wrote.

`glue/sst2` is the usual short name of configuration `sst2` of the repository nyu-mll/glue; any other hub name is
`owner/name` or `owner/name:config`. Rows lie in memory-mapped files, so memory does not grow with the data.
"""

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...storage.errors import DataError
from .contract import (
    BATCH_ROWS,
    BUILTIN,
    PICTURE_BATCH_ROWS,
    Batch,
    Picture,
    Request,
    Source,
    is_saved_dataset,
    looks_local,
    refuse_validation_file,
)

GLUE_REPOSITORY = "nyu-mll/glue"
_HUB_NAME = re.compile(r"(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(:(?P<config>[\w.-]+))?")


def opens(data: str) -> bool:
    """Whether `data` is a saved folder, or has the form of a hub name and is no local place."""
    if looks_local(data):
        return is_saved_dataset(data)
    return not data.startswith(BUILTIN) and _HUB_NAME.fullmatch(data) is not None


def open_source(request: Request) -> Source:
    """The data set that the request names; a hub data set is fetched into the cache of `datasets` once.

    Raises DataError where the hub does not know it, cannot be reached, or is switched off and nothing is cached.
    """
    refuse_validation_file(request)
    if looks_local(request.data):
        return DatasetsSource(request.data, _load_saved(request.data), request.task)
    repository, config = hub_location(request.data)
    task = request.task or (config if repository == GLUE_REPOSITORY else None)
    return DatasetsSource(request.data, _load_hub(request, repository, config), task)


def hub_location(data: str) -> tuple[str, str | None]:
    """Repository and configuration behind a hub name; `glue/<task>` is a configuration of one repository."""
    match = _HUB_NAME.fullmatch(data)
    if match is None:
        raise DataError(f"{data!r} is no hub name; owner/name or owner/name:config is wanted")
    if match["owner"] == "glue" and match["config"] is None:
        return GLUE_REPOSITORY, match["name"]
    return f"{match['owner']}/{match['name']}", match["config"]


class DatasetsSource(Source):
    """The splits of a data set that the library `datasets` has opened."""

    def __init__(self, name: str, splits: Mapping[str, Any], task: str | None) -> None:
        self.name = name
        self.task = task
        self.splits = tuple(splits)
        self._splits = {split: _undecoded(rows) for split, rows in splits.items()}
        if any(self.picture_columns(split) for split in splits):
            self.scored = (*self.scored, "test")  # sets of pictures have labels there

    def columns(self, split: str) -> tuple[str, ...]:
        return tuple(self._splits[split].column_names)

    def rows(self, split: str) -> int:
        self.require(split)
        return int(self._splits[split].num_rows)

    def batches(self, split: str, columns: Sequence[str]) -> Iterator[Batch]:
        self.require(split, columns)
        pictures = [column for column in self.picture_columns(split) if column in columns]
        rows = self._splits[split].select_columns(list(columns))
        first = 0
        for batch in rows.iter(batch_size=PICTURE_BATCH_ROWS if pictures else BATCH_ROWS):
            size = len(batch[columns[0]])
            for column in pictures:
                batch[column] = self._pictures(split, range(first, first + size), batch[column])
            yield batch
            first += size

    def picture_columns(self, split: str) -> tuple[str, ...]:
        return _picture_columns(self._splits[split])

    def take(self, split: str, column: str, rows: Sequence[int]) -> list[Any]:
        self.require(split, [column])
        values = self._splits[split].select_columns([column])[list(rows)][column]
        return self._pictures(split, rows, values) if column in self.picture_columns(split) else list(values)

    def _pictures(self, split: str, rows: Iterable[int], values: Iterable[Any]) -> list[Picture | None]:
        """What `datasets` holds of pictures that it does not decode: bytes, or the path of a file."""
        found: list[Picture | None] = []
        for row, value in zip(rows, values, strict=True):
            if value is None or (value["bytes"] is None and value["path"] is None):
                found.append(None)
                continue
            name = f"{self.name}: split {split!r}, row {row}" + (f" ({value['path']})" if value["path"] else "")
            found.append(Picture(name, Path(value["path"]) if value["bytes"] is None else value["bytes"]))
        return found

    def class_names(self, split: str, column: str) -> tuple[str, ...] | None:
        self.require(split, [column])
        names = getattr(self._splits[split].features[column], "names", None)
        return tuple(names) if names else None


def _picture_columns(rows: Any) -> tuple[str, ...]:
    from datasets import Image

    return tuple(name for name, feature in rows.features.items() if isinstance(feature, Image))


def _undecoded(rows: Any) -> Any:
    """The same rows; pictures stay encoded."""
    from datasets import Image

    for column in _picture_columns(rows):
        rows = rows.cast_column(column, Image(decode=False))
    return rows


def _load_saved(data: str) -> Mapping[str, Any]:
    import datasets  # heavy, and no other source needs it

    try:
        loaded = datasets.load_from_disk(str(Path(data).expanduser()))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{data}: the saved data set cannot be read ({_first_line(error)})") from None
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def _load_hub(request: Request, repository: str, config: str | None) -> Mapping[str, Any]:
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    where = repository if config is None else f"{repository}, configuration {config}"
    at = f" at revision {request.revision}" if request.revision else ""
    try:
        return dict(datasets.load_dataset(repository, config, revision=request.revision))
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        if constants.HF_HUB_OFFLINE:
            raise DataError(
                f"{request.data}: {where}{at} is not in the local cache, and HF_HUB_OFFLINE is set; bring it where there is "
                f"a network, with the same HF_HOME: {_fetch_command(request)}"
            ) from None
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            raise DataError(
                f"{request.data}: the hub knows no data set {where}{at}, or it is private; check the name, "
                "or set HF_TOKEN for a private one"
            ) from None
        if isinstance(error, ConnectionError) or _is_network(error):
            endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
            raise DataError(
                f"{request.data}: the hub at {endpoint} cannot be reached ({_first_line(error)}); try again, "
                "or work from the local cache with HF_HUB_OFFLINE=1"
            ) from None
        raise DataError(f"{request.data}: {where}{at} cannot be loaded: {_first_line(error)}") from None


def _fetch_command(request: Request) -> str:
    at = f" --set {shlex.quote(f'extract.data_revision={request.revision}')}" if request.revision else ""
    return f"sherl-cache fetch --data {shlex.quote(request.data)}{at}"


def _is_network(error: BaseException) -> bool:
    """Whether an HTTP client's error lies behind this one."""
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__module__.split(".")[0] in ("httpx", "httpcore", "requests", "urllib3"):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
