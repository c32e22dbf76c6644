"""The weights that stage two needs of a model, as files of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from .backbones.contract import BackboneTable
    from .load import LoadedModel

REST = "rest.safetensors"


def block_file(stream: str, index: int) -> str:
    """Name of the weights file of one late block."""
    return f"{stream}.{index:02d}.safetensors"


def late_weights(loaded: LoadedModel, late: int) -> dict[str, bytes]:
    """Weights that stage two needs, as safetensors bytes by file name.

    One file a late block, and `rest.safetensors`: final norms, what late layers need of early ones, the
    output projection. Names and number format are the loaded module's own. Raises ModelError where `late`
    leaves no early layer.
    """
    table, config = loaded.table, loaded.config
    table.check_late(config, late)
    state = loaded.model.state_dict()
    files: dict[str, dict[str, Tensor]] = {REST: _below(state, _rest_modules(table))}
    for stream in table.late_streams:
        depth = table.depth(config, stream.name)
        for index in range(depth - late, depth):
            files[block_file(stream.name, index)] = _below(state, [f"{stream.layers}.{index}"])
    return {name: safetensors.torch.save(tensors) for name, tensors in files.items()}


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
