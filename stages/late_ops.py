"""The frozen ops of late layers, found by what a backbone's table says of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..storage.errors import ModelError
from .backbones.contract import OpPath, Share, StreamTable, Sublayer
from .late import LatePart
from .methods.contract import LateOps, Op, OpKind


@dataclass(frozen=True, eq=False, kw_only=True)
class HookedOp(Op):
    """An op together with the modules that it is."""

    entry: nn.Module
    exit: nn.Module
    columns: slice | tuple[int, ...] | None = None
    """Of the module's output, where the op is some columns of a fused projection."""

    def outputs_first(self, weight: Tensor) -> Tensor:
        """A weight of its module, or what has its shape, as [out, in]; of a norm [width]."""
        # a class that holds it as [in, out] is no nn.Linear
        return weight if isinstance(self.exit, nn.Linear) or self.kind == "norm" else weight.T

    @property
    def own_outputs(self) -> slice | list[int]:
        """Which rows of that are the op's."""
        columns = slice(None) if self.columns is None else self.columns
        return columns if isinstance(columns, slice) else list(columns)  # a tuple would be an index an axis


@dataclass(frozen=True, eq=False)
class Columns:
    """A frozen linear op that is some output columns of a fused projection."""

    module: nn.Module
    columns: slice | tuple[int, ...]

    def __call__(self, rows: Tensor) -> Tensor:
        values: Tensor = self.module(rows)
        return values[..., self.columns if isinstance(self.columns, slice) else list(self.columns)]


def late_ops(tables: Mapping[str, StreamTable], late: LatePart, widths: Mapping[str, int]) -> LateOps:
    """Every op that the tables name of the late layers, in the order of streams, layers and the table.

    widths: by stream, of the rows that go from layer to layer. Raises ModelError where a layer lacks what its table names.
    """
    found: list[Op] = []
    for name in late.names:
        for index, layer in late.stream(name).layers.items():
            found += _ops_of_layer(tables[name], layer, index, widths[name])
    return LateOps(tuple(found))


def _ops_of_layer(table: StreamTable, layer: nn.Module, index: int, width: int) -> list[Op]:
    found: dict[str, HookedOp] = {}
    composites = {"block": Sublayer("", "")}
    for role, path in table.ops.items():
        if isinstance(path, Sublayer):
            composites[role] = path
            continue
        module, share = _resolve(layer, path, f"{table.name} layer {index}, op {role}")
        if module is None:
            continue
        kind: OpKind = "norm" if role.endswith("norm") else "linear"
        in_width, out_width = _widths(module, kind)
        columns = None if share is None else share.columns(layer, out_width)
        found[role] = HookedOp(
            stream=table.name,
            layer=index,
            role=role,
            kind=kind,
            in_width=in_width,
            out_width=out_width if share is None else out_width // share.of,
            frozen=module if columns is None else Columns(module, columns),
            entry=module,
            exit=module,
            columns=columns,
        )
    for role, sublayer in composites.items():
        where = f"{table.name} layer {index}, op {role}"
        found[role] = HookedOp(
            stream=table.name,
            layer=index,
            role=role,
            kind="block" if role == "block" else "ffn" if role == "ffn" else "attention",
            in_width=width,
            out_width=width,
            norm_before=None if sublayer.before is None else _module(layer, sublayer.before, where),
            norm_after=None if sublayer.after is None else _module(layer, sublayer.after, where),
            inside=_inside(role, found),
            entry=_module(layer, sublayer.entry, where),
            exit=_module(layer, sublayer.exit, where),
        )
    return list(found.values())


def _inside(role: str, found: Mapping[str, Op]) -> dict[str, Op]:
    """Ops of a composite by their plain roles."""
    if role == "block":
        return {}
    if role == "ffn":
        return {name: op for name, op in found.items() if name in ("ffn_in", "ffn_gate", "ffn_out")}
    prefix = role.removesuffix("attention")
    return {plain: found[prefix + plain] for plain in ("query", "key", "value", "out") if prefix + plain in found}


def _resolve(layer: nn.Module, path: OpPath, where: str) -> tuple[nn.Module | None, Share | None]:
    if isinstance(path, Share):
        return _module(layer, path.path, where), path
    if isinstance(path, tuple):
        known = dict(layer.named_modules())
        return next((known[item] for item in path if item in known), None), None
    assert isinstance(path, str)
    return _module(layer, path, where), None


def _module(layer: nn.Module, path: str, where: str) -> nn.Module:
    try:
        return layer.get_submodule(path)
    except AttributeError:
        raise ModelError(f"{where}: a {type(layer).__name__} has no {path!r}; the backbone's table is wrong") from None


def _widths(module: nn.Module, kind: OpKind) -> tuple[int, int]:
    """Input and output width of a linear op or a norm."""
    weight: Any = module.weight
    if kind == "norm":
        return len(weight), len(weight)
    # a linear layer holds [out, in]; classes that hold [in, out] are no nn.Linear
    out_width, in_width = weight.shape if isinstance(module, nn.Linear) else weight.shape[::-1]
    return int(in_width), int(out_width)
