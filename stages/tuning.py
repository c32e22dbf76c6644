"""Puts the parts of a tuner on the frozen ops of late layers, by hooks on the late modules themselves.

The hooks stay on the modules, so the parts act wherever the late layers run: in stage two and hung into a live model.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..storage.errors import InvalidInput, RecipeError
from .late import LatePart
from .late_ops import HookedOp
from .methods.contract import Part, Tuner
from .plugins import find, names
from .tuned_attention import TunedProduct


def tuner_class(
    name: str | None, options: Mapping[str, Any], late: int, mode: Literal["frozen", "full"] | None
) -> type[Tuner] | None:
    """The tuner that a recipe names. Raises RecipeError, also where `late` layers in this mode leave nothing to tune."""
    if name is None:
        if options:
            raise RecipeError(f"tuner.name: options without a tuner; there are {', '.join(names('tuner'))}: name one")
        return None
    method = find("tuner", name)
    assert issubclass(method, Tuner)
    if not late:
        raise RecipeError(f"tuner.name: {name} tunes late layers, and late.blocks is 0; set late.blocks to 1 or more")
    if mode == "full":
        raise RecipeError(
            f"late.mode: full trains the late layers themselves, on which {name} wants frozen ones; set late.mode to frozen "
            "or leave it out, or leave tuner out"
        )
    return method


def leading_rows(
    tuner: Tuner | None, late: LatePart, lengths: Mapping[str, Tensor], positions: Callable[[Any], int | None]
) -> dict[str, Tensor]:
    """Rows [p, D] by stream that a tuner puts in front of segments of `lengths`.

    positions: of a config, how many it has, as in a backbone's table. Raises InvalidInput where they do not suffice.
    """
    leading = {} if tuner is None or not tuner.enabled else tuner.leading_rows()
    for name, rows in leading.items():
        limit = positions(late.stream(name).stack.config)
        longest = int(lengths[name].max()) if limit is not None and len(lengths[name]) else 0
        if limit is not None and longest + len(rows) > limit:
            raise InvalidInput(
                f"{len(rows)} prompt rows before {longest} tokens: this model has positions for {limit} of both; "
                f"set tuner.length to at most {limit - longest}, or extract with a smaller --max-length"
            )
    return leading


def hang(tuner: Tuner, late: LatePart) -> None:
    """Let the parts of a tuner act on the late layers, for good. Its ops are those that `late_ops` gave of them."""
    for name in late.names:
        late.stream(name).tasks = tuner.tasks
    products: dict[nn.Module, TunedProduct] = {}
    for op, part in tuner.placed:
        assert isinstance(op, HookedOp)
        _Site(tuner, op, part).install()
        if part.overrides("attend"):
            if op.entry not in products:
                products[op.entry] = TunedProduct(tuner, op.entry)
            products[op.entry].parts.append(part)


def merged_state(tuner: Tuner, late: LatePart) -> dict[str, Tensor]:
    """Weights of the late layers with the tuner folded in, by the names `<stream>.<index>.`; without any hook they
    compute what the tuned layers compute.

    Raises RecipeError where a part cannot be folded, or would need a bias that its op does not have.
    """
    state = {name: tensor.detach().clone() for name, tensor in late.named_parameters() if _is_late(name)}
    names = {module: name for name, module in late.named_modules() if _is_late(f"{name}.")}
    if not tuner.mergeable:
        raise RecipeError(
            f"tuner.name: {tuner.method_name()} cannot be merged into the frozen weights: what it adds is no change of one "
            "op's weight and bias; leave it hung in"
        )
    with torch.no_grad():
        for op, part in tuner.placed:
            assert isinstance(op, HookedOp)
            _fold(state, names[op.exit], op, part)
    return state


def _fold(state: dict[str, Tensor], name: str, op: HookedOp, part: Part) -> None:
    """Replace an op's weight and bias in `state` by those with `part` folded in."""
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    whole, inner = op.outputs_first(weight), op.own_outputs
    folded, folded_bias = part.fold(whole[inner], None if bias is None else bias[inner])
    if folded_bias is not None and bias is None:
        raise RecipeError(
            f"tuner.name: {op.name} has no bias, so that one that was learned for it cannot be merged; leave the tuner hung in"
        )
    whole[inner] = folded
    if bias is not None and folded_bias is not None:
        bias[inner] = folded_bias


def _is_late(name: str) -> bool:
    """Whether a name within a LatePart is that of a late layer: `<stream>.<index>.`"""
    return name.partition(".")[2].partition(".")[0].isdigit()


class _Site:
    """A part on its op. Its bound methods are the hooks, so that a copy of a model holds copies of both."""

    def __init__(self, tuner: Tuner, op: HookedOp, part: Part) -> None:
        self.tuner, self.op, self.part = tuner, op, part
        self.x: Tensor | None = None

    def install(self) -> None:
        enters, leaves = self.part.overrides("enter"), self.part.overrides("leave")
        # x is remembered only where the hook at the exit cannot see it
        self.remembers = leaves and (enters or self.op.entry is not self.op.exit)
        if enters or self.remembers:
            self.op.entry.register_forward_pre_hook(self.on_entry, with_kwargs=True)
        if leaves:
            self.op.exit.register_forward_hook(self.on_exit, with_kwargs=True)

    def on_entry(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not self.tuner.enabled:
            return None
        x = _input(args, kwargs)
        if self.remembers:
            self.x = x
        if not self.part.overrides("enter"):
            return None
        return _with_input(args, kwargs, self.part.enter(x))

    def on_exit(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if not self.tuner.enabled:
            return None
        x, self.x = (self.x, None) if self.remembers else (_input(args, kwargs), None)
        assert x is not None
        y = output[0] if isinstance(output, tuple) else output
        inner = self.op.columns
        if inner is None:
            left = self.part.leave(x, y)
        elif isinstance(inner, tuple):
            places = torch.tensor(inner, device=y.device)
            left = y.index_copy(y.ndim - 1, places, self.part.leave(x, y[..., places]))
        else:
            parts = [y[..., : inner.start], self.part.leave(x, y[..., inner]), y[..., inner.stop :]]
            left = torch.cat(parts, dim=-1)
        return (left, *output[1:]) if isinstance(output, tuple) else left


def _input(args: Any, kwargs: Any) -> Tensor:
    """x among the arguments of a module: the first."""
    x: Tensor = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values())))
    return x


def _with_input(args: Any, kwargs: Any, x: Tensor) -> tuple[Any, Any]:
    if args:
        return (x, *args[1:]), kwargs
    key = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return args, {**kwargs, key: x}
