"""The last late layer, computed for the rows that are read and no others.

Keys and values are needed of every row; queries' product with them, the output projection, the feed-forward and the
norms of a row matter only where somebody reads it. The layer's own forward runs: it is given the rows that are read,
its attention is given all of them, and the product of attention goes on with the queries of the first. Queries are
still projected for all rows, since an attention takes its shapes from its input.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .late import LatePart
from .late_ops import HookedOp
from .methods.contract import LateOps, Op, Tuner

IMPLEMENTATION = "sherl_cache_selected_rows"
"""Name of our function in the interface of transformers."""


def let_rows_be_selected(late: LatePart, ops: LateOps, tuner: Tuner | None) -> None:
    """Let the last layer of each stream run for some rows only, where that is possible."""
    for name in late.names:
        stream = late.stream(name)
        last = stream.indices[-1]
        own = [op for op in ops.ops if op.stream == name and op.layer == last]
        stream.selected = SelectedRows.of(stream.layers[last], own, tuner)


class SelectedRows:
    """Hooks on one layer that do nothing but inside `only`."""

    def __init__(self, layer: nn.Module, attention: HookedOp, product: Any, out: nn.Module) -> None:
        """product: the module that calls the attention interface; out: the projection behind it."""
        self._norm = attention.norm_before
        self._rows: Tensor | None = None
        self._all: Tensor | None = None
        self._attended: Tensor | None = None
        self.implementation: str = product.config._attn_implementation
        product.config = deepcopy(product.config)
        product.config._attn_implementation = IMPLEMENTATION
        product.selected_rows = self
        # before what a tuner may have put there, which sees the rows that are read
        layer.register_forward_pre_hook(self._enter_layer, with_kwargs=True, prepend=True)
        attention.entry.register_forward_pre_hook(self._enter_attention, with_kwargs=True, prepend=True)
        out.register_forward_pre_hook(self._enter_out, prepend=True)
        layer.register_forward_hook(self._leave_layer)

    @classmethod
    def of(cls, layer: nn.Module, ops: Sequence[Op], tuner: Tuner | None) -> Self | None:
        """For a layer with these ops; None where they do not name a self-attention of its own, the layer attends to
        another stream, or a tuner mixes rows or works on more than linear ops and norms.
        """
        roles = {op.role: op for op in ops}
        attention, out = roles.get("attention"), roles.get("out")
        if not isinstance(attention, HookedOp) or not isinstance(out, HookedOp) or "cross_attention" in roles:
            return None
        if tuner is not None and any(tuner.mixes_rows or op.kind not in ("linear", "norm") for op, _ in tuner.placed):
            return None
        products: list[Any] = [module for module in attention.entry.modules() if hasattr(module, "config")]
        if len(products) != 1 or products[0].config._attn_implementation not in ALL_ATTENTION_FUNCTIONS:
            return None
        return cls(layer, attention, products[0], out.entry)

    @contextmanager
    def only(self, rows: Tensor) -> Iterator[None]:
        """Meanwhile the layer takes [S, T, D] and computes [S, 1, D], of segment s the row `rows[s]`, which it gives as if
        it were all T: some stacks count on the shape. rows: int64 [S]."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = self._all = self._attended = None

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any
    ) -> Tensor:
        """The attention product [S, T, H, d]; inside `only` that of the rows that are read is put aside for `out`."""
        function = ALL_ATTENTION_FUNCTIONS[self.implementation]
        if self._rows is None:
            output: Tensor = function(module, query, key, value, mask, **rest)[0]
            return output
        rows, length, keys = self._rows, query.shape[2], key.shape[2]
        causal = rest.pop("is_causal", None)
        if mask is None and (getattr(module, "is_causal", True) if causal is None else causal):
            mask = (torch.arange(keys, device=query.device) <= rows.unsqueeze(1))[:, None, None]
        if rest.get("position_bias") is not None:
            rest["position_bias"] = _of_queries(rest["position_bias"], rows)
        mask = None if mask is None else _of_queries(mask, rows)
        chosen = _of_queries(query, rows)
        self._attended = function(module, chosen, key, value, mask, is_causal=False, **rest)[0]
        return self._attended.new_zeros(()).expand(len(rows), length, *self._attended.shape[2:])

    def _enter_layer(self, layer: nn.Module, args: Any, kwargs: Any) -> Any:
        if self._rows is None:
            return None
        args, kwargs, self._all = _exchanged(args, kwargs, lambda state: _of_rows(state, self._rows))
        return args, kwargs

    def _enter_attention(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self._rows is None:
            return None
        assert self._all is not None
        whole = self._all if self._norm is None else self._norm(self._all)
        args, kwargs, _ = _exchanged(args, kwargs, lambda state: whole)
        return args, kwargs

    def _leave_layer(self, layer: nn.Module, args: Any, output: Any) -> Any:
        if self._rows is None:
            return None
        assert self._all is not None
        length = self._all.shape[1]
        if isinstance(output, tuple):
            return output[0].expand(-1, length, -1), *output[1:]
        return output.expand(-1, length, -1)

    def _enter_out(self, module: nn.Module, args: Any) -> Any:
        if self._rows is None:
            return None
        assert self._attended is not None
        return (self._attended.flatten(2), *args[1:])


def _of_rows(state: Tensor, rows: Tensor | None) -> Tensor:
    """[S, T, D] -> [S, 1, D]."""
    assert rows is not None
    return state.gather(1, rows[:, None, None].expand(-1, 1, state.shape[2]))


def _of_queries(values: Tensor, rows: Tensor) -> Tensor:
    """[S or 1, H, T or 1, X] -> [S, H, 1, X]: of each segment the query that is read."""
    if values.shape[2] == 1:
        return values
    values = values.expand(len(rows), -1, -1, -1)
    return values.gather(2, rows[:, None, None, None].expand(-1, values.shape[1], 1, values.shape[3]))


def _exchanged(args: Any, kwargs: Any, change: Any) -> tuple[Any, Any, Tensor]:
    """Arguments of a module with another first tensor, and what that was."""
    if args:
        return (change(args[0]), *args[1:]), kwargs, args[0]
    before: Tensor = kwargs["hidden_states"]
    return args, {**kwargs, "hidden_states": change(before)}, before


def selected_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    """The attention function of a layer that may run for some rows, as the interface of transformers calls it."""
    selected: SelectedRows = module.selected_rows
    return selected.attend(module, query, key, value, attention_mask, **rest), None


AttentionInterface.register(IMPLEMENTATION, selected_attention)
