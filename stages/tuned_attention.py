"""The attention product of late layers, as parts of a tuner change it.

It goes through the attention interface of transformers: a module whose product is tuned gets a config of its own that
names `tuned_attention`, which hands the product to the parts and computes it as the module did before.
"""

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..storage.errors import ModelError
from .methods.contract import Part, Tuner

IMPLEMENTATION = "sherl_cache_tuned"
"""Name of our function in the interface of transformers."""


class TunedProduct:
    """The attention product of one module with the parts that change it, the first part innermost."""

    def __init__(self, tuner: Tuner, module: Any) -> None:
        self.tuner = tuner
        self.parts: list[Part] = []
        implementation = module.config._attn_implementation
        # the library keeps the plain product of a family in the family's own file
        own = getattr(sys.modules[type(module).__module__], f"{implementation}_attention_forward", None)
        self.function = ALL_ATTENTION_FUNCTIONS.get(implementation, own)
        if self.function is None:
            raise ModelError(
                f"the attention of a {type(module).__name__} ({implementation}) cannot be reached from outside: choose a "
                "tuner of other ops"
            )
        module.config = copy.deepcopy(module.config)
        module.config._attn_implementation = IMPLEMENTATION
        module.tuned_product = self

    def __call__(self, call: "_Call", query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attention: Any = call
        if self.tuner.enabled:
            for part in self.parts:
                attention = _Tuned(part, attention)
        output: Tensor = attention(query, key, value)
        return output


@dataclass(frozen=True)
class _Tuned:
    """An attention that a part changes."""

    part: Part
    inner: Any

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra: int = 0) -> Tensor:
        if extra == key.shape[2]:  # a product of another part with keys of its own only
            output: Tensor = self.inner(query, key, value, extra)
            return output
        return self.part.attend(_Behind(self.inner, extra), query, key, value)


@dataclass(frozen=True)
class _Behind:
    """An attention whose first keys are already another part's."""

    inner: Any
    first: int

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra: int = 0) -> Tensor:
        own = extra == key.shape[2]
        output: Tensor = self.inner(query, key, value, extra if own else extra + self.first)
        return output


@dataclass(frozen=True)
class _Call:
    """One call of the frozen product: what it takes beside query, key and value."""

    module: nn.Module
    function: Any
    mask: Tensor | None
    position_bias: Tensor | None
    causal: bool
    rest: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra: int = 0) -> Tensor:
        mask, bias, causal = self.mask, self.position_bias, self.causal
        length, keys = query.shape[2], key.shape[2] - extra
        if extra and not keys:
            mask, bias, causal = None, None, False
        elif extra:
            if causal and mask is None and length > 1:  # a flag cannot say that the first keys are seen by all
                mask = torch.ones(length, keys, dtype=torch.bool, device=query.device).tril()[None, None]
            mask = None if mask is None else F.pad(mask, (extra, 0), value=mask.dtype == torch.bool)
            bias = None if bias is None else F.pad(bias, (extra, 0))
            causal = False
        arguments = dict(self.rest) if bias is None else {**self.rest, "position_bias": bias}
        output: Tensor = self.function(self.module, query, key, value, mask, is_causal=causal, **arguments)[0]
        return output


def tuned_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """The attention function of modules whose product is tuned, as the interface of transformers calls it."""
    product: TunedProduct = module.tuned_product
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    call = _Call(module, product.function, attention_mask, position_bias, bool(causal), rest)
    return product(call, query, key, value), None


AttentionInterface.register(IMPLEMENTATION, tuned_attention)
