"""Where rows come from: `open_source` asks each source file of this folder whether it knows the name.

Nothing is registered: a file that offers `opens` and `open_source` is a source. A local place wins over a hub
repository of the same name, as in `transformers` and `datasets`.
"""

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

from ...storage.errors import DataError
from .contract import Request, Source

__all__ = ["Source", "open_source"]


def open_source(
    data: str,
    *,
    task: str | None = None,
    validation: str | None = None,
    revision: str | None = None,
) -> Source:
    """The source that `data` names.

    `data` is `builtin/reviews`, `glue/sst2`, a hub name `owner/name[:config]`, a csv, tsv, json, jsonl or
    parquet file (its validation rows in the file `validation`), a folder of GLUE files (train.tsv, dev.tsv)
    read by `task`, or a folder written by `save_to_disk`. `revision` is a hub commit, branch or tag.

    Raises DataError where nothing can be read under that name; the message says what was looked for.
    """
    from ..tasks import LAYOUTS, named_task  # tasks imports this package, so it is imported late

    layout = LAYOUTS.get(named_task(task).name) if task else None
    for source in _source_files():
        if source.opens(data):
            opened: Source = source.open_source(
                Request(data=data, task=task, validation=validation, revision=revision, layout=layout)
            )
            return opened
    raise DataError(
        f"{data!r} is no data: neither a file or folder that exists, nor a hub name such as glue/sst2 or "
        "owner/name, nor builtin/reviews"
    )


def _source_files() -> Iterator[ModuleType]:
    for module in pkgutil.iter_modules(__path__):
        loaded = import_module(f".{module.name}", __name__)
        if hasattr(loaded, "opens"):
            yield loaded
