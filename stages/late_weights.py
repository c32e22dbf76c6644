"""The weights that stage two needs of a model, as files of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch
import torch

from ..storage.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from torch import Tensor

    from .backbones.contract import BackboneTable
    from .load import LoadedModel

REST = "rest.safetensors"


def block_file(stream: str, index: int) -> str:
    """Name of the weights file of one late block."""
    return f"{stream}.{index:02d}.safetensors"


def late_weights(loaded: LoadedModel, late: int) -> dict[str, bytes]:
    """Weights that stage two needs, as safetensors bytes by file name.

    One file a block of `stored_blocks`, and `rest.safetensors`: final norms, what late layers need of early ones,
    the output projection. Names and number format are the loaded module's own. Raises ModelError where the model
    has fewer than `late` layers.
    """
    table, config = loaded.table, loaded.config
    blocks = stored_blocks(table, config, late)
    state = loaded.model.state_dict()
    files: dict[str, dict[str, Tensor]] = {REST: _below(state, _rest_modules(table))}
    for name, indices in blocks.items():
        for index in indices:
            files[block_file(name, index)] = _below(state, [f"{table.stream(name).layers}.{index}"])
    return {name: safetensors.torch.save(tensors) for name, tensors in files.items()}


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
    if all(late == depths[stream.name] for stream in table.late_streams):
        return {name: range(depth) for name, depth in depths.items()}
    return {stream.name: range(depths[stream.name] - late, depths[stream.name]) for stream in table.late_streams}


def _rest_modules(table: BackboneTable) -> list[str]:
    """Paths of the modules and tensors that stage two needs beside late layers."""
    paths = [path for stream in table.streams for path in (stream.norm, *stream.kept) if path is not None]
    return [*paths, *(path for path in (table.head, table.head_bias) if path is not None)]


def _below(state: Mapping[str, Tensor], paths: list[str]) -> dict[str, Tensor]:
    """Copies of these tensors and of those of these modules; a copy, since safetensors refuses tensors that share memory."""
    prefixes = tuple(f"{path}." for path in paths)
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
        if name.startswith(prefixes) or name in paths
    }
