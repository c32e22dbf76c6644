"""The weights that stage two needs of a model, as files of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import safetensors.torch

from ..storage.errors import ModelError

if TYPE_CHECKING:
    from typing import Any

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

    One file a block of `stored_blocks`, and `rest.safetensors`: final norms, what late layers need of early ones,
    the output projection. Names and number format are the loaded module's own. Raises ModelError where the model
    has fewer than `late` layers.
    """
    table, config = loaded.table, loaded.config
    files = {REST: _rest_modules(table)}
    for name, indices in stored_blocks(table, config, late).items():
        for index in indices:
            files[block_file(name, index)] = [f"{table.stream(name).layers}.{index}"]
    return LazyFiles({name: partial(_file, loaded, paths) for name, paths in files.items()})


def _file(loaded: LoadedModel, paths: list[str]) -> bytes:
    data: bytes = safetensors.torch.save(loaded.tensors(paths))
    return data


def stored_blocks(table: BackboneTable, config: Any, late: int) -> dict[str, range]:
    """Blocks of each stream whose weights a store holds: the last `late` of each late stream; where that is every one
    of them, every block of every stream, for fusions that call early layers. Raises ModelError.
    """
    depths = {stream.name: table.depth(config, stream.name) for stream in table.streams}
    for stream in table.late_streams:
        if not 0 <= late <= depths[stream.name]:
            raise ModelError(
                f"weights of {late} layers: the {stream.name} of this {config.model_type} model has "
                f"{depths[stream.name]}; store those of at most that many"
            )
    if table.late_streams and all(late == depths[stream.name] for stream in table.late_streams):
        return {name: range(depth) for name, depth in depths.items()}
    return {stream.name: range(depths[stream.name] - late, depths[stream.name]) for stream in table.late_streams}


def _rest_modules(table: BackboneTable) -> list[str]:
    """Paths of the modules and tensors that stage two needs beside late layers."""
    paths = [stream.norm for stream in table.streams if stream.norm is not None]
    paths += [path for stream in table.late_streams for path in stream.kept]
    return [*paths, *(path for path in (table.head, table.head_bias) if path is not None)]
