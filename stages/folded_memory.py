"""Attention of late layers to another stream's rows, the memory, without keys and values of them where few queries ask.

A key is linear in its row, and so a query q of head h scores row m by (W_k,h^T q) . m, and its weighted mean of values is W_v,h
of the weighted mean of rows. With T queries a head, H heads of width d and M rows of width D that is 2 T H (d + M) D
multiplications a segment instead of 2 M (D + T) H d: for answers of a word or two and texts of a sentence or more, a
small part. The layer's own forward runs: its attention is given one row, and its product goes on with all of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .late import LatePart
from .late_ops import HookedOp
from .methods.contract import LateOps, Op, Tuner

IMPLEMENTATION = "sherl_cache_folded_memory"
"""Name of our function in the interface of transformers."""

_ARGUMENTS = ("key_value_states", "encoder_hidden_states")
"""How attention modules call the memory."""

_ADVANTAGE = 2
"""How many times fewer multiplications it must be: many small products run at half the rate of a large one."""


def let_memory_be_folded(late: LatePart, ops: LateOps, tuner: Tuner | None) -> None:
    """Let every late layer that attends to a memory go without keys and values of it, where that is possible."""
    for name in late.names:
        stream = late.stream(name)
        for index in stream.indices:
            own = [op for op in ops.ops if op.stream == name and op.layer == index]
            folded = FoldedMemory.of(own, tuner)
            if folded is not None:
                stream.folded[index] = folded


class FoldedMemory:
    """A hook on one attention that does nothing but inside `allowed`."""

    def __init__(self, product: Any, key: nn.Linear, value: nn.Linear, head_width: int) -> None:
        """product: the module that calls the attention interface, with these projections."""
        self.key, self.value, self.head_width = key, value, head_width
        self._allowed = False
        self._memory: Tensor | None = None
        self.implementation: str = product.config._attn_implementation
        product.config = deepcopy(product.config)
        product.config._attn_implementation = IMPLEMENTATION
        product.folded_memory = self
        product.register_forward_pre_hook(self._enter, with_kwargs=True)

    @classmethod
    def of(cls, ops: Sequence[Op], tuner: Tuner | None) -> Self | None:
        """For a layer with these ops; None where they do not name a cross-attention with projections of its own, or a tuner
        changes its keys, values or product.
        """
        roles = {op.role: op for op in ops}
        found = [roles.get(role) for role in ("cross_attention", "cross_key", "cross_value")]
        modules = [op.entry for op in found if isinstance(op, HookedOp) and op.columns is None]
        if len(modules) != len(found):
            return None
        placed = [] if tuner is None else [(op, part) for op, part in tuner.placed if op in found]
        if any(op.role != "cross_attention" or part.overrides("attend") for op, part in placed):
            return None
        product, key, value = modules
        config: Any = getattr(product, "config", None)
        if getattr(config, "_attn_implementation", None) not in ALL_ATTENTION_FUNCTIONS:
            return None
        head_width = _head_width(product)
        if head_width is None or getattr(product, "has_relative_attention_bias", False):
            return None
        if not isinstance(key, nn.Linear) or not isinstance(value, nn.Linear):
            return None
        return cls(product, key, value, head_width)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Meanwhile the attention goes without keys and values where that is less work."""
        self._allowed = True
        try:
            yield
        finally:
            self._allowed, self._memory = False, None

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any
    ) -> Tensor:
        """The attention product [S, T, H, d] of queries [S, H, T, d]; of the memory that was put aside, where one was."""
        memory, self._memory = self._memory, None
        if memory is None:
            output: Tensor = ALL_ATTENTION_FUNCTIONS[self.implementation](module, query, key, value, mask, **rest)[0]
            return output
        scaling = rest.get("scaling")
        query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        segments, heads, length, width = query.shape
        asked = _by_head(query) @ self.key.weight.view(heads, width, -1)  # [H, S T, D]
        scores = (_by_segment(asked, segments) @ memory.transpose(1, 2)).view(segments, heads, length, -1)
        if self.key.bias is not None:
            scores = scores + (query @ self.key.bias.view(heads, width, 1))
        if mask is not None:
            hidden = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(~mask, hidden) if mask.dtype == torch.bool else scores + mask
        shares = F.dropout(scores.softmax(-1), rest.get("dropout", 0.0), module.training)
        mixed = shares.flatten(1, 2) @ memory  # [S, H T, D]
        values = _by_head(mixed.view(segments, heads, length, -1)) @ self.value.weight.view(heads, width, -1).mT
        values = values.view(heads, segments, length, width).permute(1, 2, 0, 3)
        if self.value.bias is not None:
            values = values + shares.sum(-1).mT.unsqueeze(-1) * self.value.bias.view(heads, width)
        return values

    def _enter(self, module: Any, args: Any, kwargs: Any) -> Any:
        if not self._allowed:
            return None
        name = next((name for name in _ARGUMENTS if kwargs.get(name) is not None), None)
        queries = args[0] if args else kwargs["hidden_states"]
        if name is None or not self.pays(queries.shape[1], kwargs[name].shape[1]):
            return None
        self._memory = kwargs[name]
        return args, {**kwargs, name: kwargs[name][:, :1]}

    def pays(self, queries: int, rows: int) -> bool:
        """Whether that many queries of as many rows are less work without keys and values."""
        inner, width = self.key.weight.shape
        heads = inner // self.head_width
        folded = queries * (inner + heads * rows) * width
        return folded * _ADVANTAGE <= rows * (width + queries) * inner


def _head_width(module: Any) -> int | None:
    """Families have two names for it."""
    return getattr(module, "key_value_proj_dim", None) or getattr(module, "head_dim", None)


def _by_head(values: Tensor) -> Tensor:
    """[S, H, T, X] -> [H, S T, X]."""
    return values.transpose(0, 1).flatten(1, 2)


def _by_segment(values: Tensor, segments: int) -> Tensor:
    """[H, S T, X] -> [S, H T, X]."""
    return values.view(len(values), segments, -1, values.shape[-1]).transpose(0, 1).flatten(1, 2)


def folded_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    """The attention function of a layer whose memory may be folded, as the interface of transformers calls it."""
    folded: FoldedMemory = module.folded_memory
    return folded.attend(module, query, key, value, attention_mask, **rest), None


AttentionInterface.register(IMPLEMENTATION, folded_attention)
