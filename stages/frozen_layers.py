"""Early layers that a fusion calls: built from the weights of a store, by what the backbone's table says of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import safetensors.torch

from ..storage.errors import ModelError, RecipeError, StoreStale
from .late_weights import block_file, stored_blocks
from .methods.contract import Layer, frozen_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor, nn

    from .backbones.contract import BackboneTable, StreamTable
    from .methods.contract import Fusion, StreamSpec


def with_frozen_parts(
    specs: Mapping[str, StreamSpec],
    fusion: type[Fusion],
    options: Mapping[str, Any],
    table: BackboneTable,
    config: Any,
    norms: Mapping[str, nn.Module],
    open_weights: Callable[[str], bytes],
    *,
    stored: int,
    dtype: torch.dtype,
) -> dict[str, StreamSpec]:
    """The specs with the frozen layers that the fusion asks for, and with the final norms.

    stored: `--late` of the store. Raises RecipeError where the table does not say how layers are put together,
    StoreStale where the store lacks their weights.
    """
    wanted = fusion.frozen_layers(options, specs)
    found = {}
    for name, spec in specs.items():
        stream = table.stream(name)
        there = stored_blocks(table, config, stored).get(name, range(0))
        layers: dict[int, Layer] = {}
        for index in wanted.get(name, ()):
            if spec.form is None:
                raise RecipeError(
                    f"fusion.name: {fusion.method_name()} runs layers by their parts, and the table of this "
                    f"{config.model_type} model does not say how its {name} layers are put together; choose another fusion"
                )
            if index not in there:
                depth = spec.depth if not stream.late else spec.depth - min(wanted[name])
                raise StoreStale(
                    f"fusion.name: {fusion.method_name()} calls {name} layer {index}, and the store holds the weights of "
                    f"the last {stored} layers; extract with --late {depth} into another store, or read fewer taps"
                )
            tensors = safetensors.torch.load(open_weights(block_file(name, index)))
            weights = {key: value.to(dtype) for key, value in weights_by_role(stream, index, tensors).items()}
            try:
                layers[index] = frozen_layer(spec.form, spec.width, weights)
            except KeyError as error:
                raise ModelError(f"the weights of {name} layer {index} lack {error}; extract again") from None
        found[name] = replace(spec, layers=layers, final_norm=norms.get(name))
    return found


def weights_by_role(stream: StreamTable, index: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`query.weight`, ... of one layer, from tensors under the model's own names."""
    weights: dict[str, Tensor] = {}
    for role, paths in module_paths(stream).items():
        for path in paths:
            prefix = f"{stream.layers}.{index}.{path}."
            found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if found:
                weights |= {f"{role}.{name}": value for name, value in found.items()}
                break
    return weights


def module_paths(stream: StreamTable) -> dict[str, tuple[str, ...]]:
    """Paths of the single modules of a layer, relative to it, by role; the first that a layer has is meant."""
    given = {role: (path,) if isinstance(path, str) else path for role, path in stream.ops.items()}
    return {role: paths for role, paths in given.items() if isinstance(paths, tuple)}
