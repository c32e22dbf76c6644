"""The weights that stage two needs of a model, as files of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import safetensors.torch

if TYPE_CHECKING:
    from .backbones.contract import BackboneTable
    from .load import LoadedModel

REST = "rest.safetensors"


def block_file(stream: str, index: int) -> str:
    """Name of the weights file of one late block."""
    return f"{stream}.{index:02d}.safetensors"


class LazyFiles(Mapping[str, bytes]):
    """Files by name that are made each time they are asked for, so that one is in memory at a time."""

    def __init__(self, makers: Mapping[str, Callable[[], bytes]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> bytes:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def late_weights(loaded: LoadedModel, late: int) -> LazyFiles:
    """Weights that stage two needs, as safetensors bytes by file name.

    One file a late block, and `rest.safetensors`: final norms, what late layers need of early ones, the
    output projection. Names and number format are the loaded module's own. Raises ModelError where `late`
    leaves no early layer.
    """
    table, config = loaded.table, loaded.config
    table.check_late(config, late)
    files = {REST: _rest_modules(table)}
    for stream in table.late_streams:
        depth = table.depth(config, stream.name)
        for index in range(depth - late, depth):
            files[block_file(stream.name, index)] = [f"{stream.layers}.{index}"]
    return LazyFiles({name: partial(_file, loaded, paths) for name, paths in files.items()})


def _file(loaded: LoadedModel, paths: list[str]) -> bytes:
    data: bytes = safetensors.torch.save(loaded.tensors(paths))
    return data


def _rest_modules(table: BackboneTable) -> list[str]:
    """Paths of the modules and tensors that stage two needs beside late layers."""
    paths = [stream.norm for stream in table.streams if stream.norm is not None]
    paths += [path for stream in table.late_streams for path in stream.kept]
    return [*paths, *(path for path in (table.head, table.head_bias) if path is not None)]
