"""The live side of the tuner tests: the transformers model's own modules, with hooks and an attention written here.

Where an op is, and how attention is computed, is written out again by hand for each family; of stage two only copies
of the parts are used, and each method's own equations have tests of their own.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from sherl_cache.stages.methods.contract import Part

BERT = {
    "query": ("attention.self.query",),
    "key": ("attention.self.key",),
    "value": ("attention.self.value",),
    "out": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "ffn_in": ("intermediate.dense",),
    "ffn_out": ("output.dense",),
    "ffn_norm": ("output.LayerNorm",),
    "attention": ("attention.self", "attention.output.dense"),
    "ffn": ("intermediate.dense", "output.dense"),
    "block": ("",),
}
T5 = {
    "query": ("layer.0.SelfAttention.q",),
    "key": ("layer.0.SelfAttention.k",),
    "value": ("layer.0.SelfAttention.v",),
    "out": ("layer.0.SelfAttention.o",),
    "attention_norm": ("layer.0.layer_norm",),
    "cross_query": ("layer.1.EncDecAttention.q",),
    "cross_key": ("layer.1.EncDecAttention.k",),
    "cross_value": ("layer.1.EncDecAttention.v",),
    "cross_out": ("layer.1.EncDecAttention.o",),
    "cross_norm": ("layer.1.layer_norm",),
    "ffn_in": ("layer.2.DenseReluDense.wi",),
    "ffn_out": ("layer.2.DenseReluDense.wo",),
    "ffn_norm": ("layer.2.layer_norm",),
    "attention": ("layer.0.SelfAttention", "layer.0.SelfAttention.o"),
    "cross_attention": ("layer.1.EncDecAttention", "layer.1.EncDecAttention.o"),
    "ffn": ("layer.2.DenseReluDense", "layer.2.DenseReluDense.wo"),
    "block": ("",),
}
VIT = {
    "query": ("attention.q_proj",),
    "key": ("attention.k_proj",),
    "value": ("attention.v_proj",),
    "out": ("attention.o_proj",),
    "attention_norm": ("layernorm_before",),
    "ffn_in": ("mlp.fc1",),
    "ffn_out": ("mlp.fc2",),
    "ffn_norm": ("layernorm_after",),
    "attention": ("attention", "attention.o_proj"),
    "ffn": ("mlp", "mlp.fc2"),
    "block": ("",),
}
DISTILBERT = {"query": ("attention.q_lin",), "value": ("attention.v_lin",)}
DINOV2 = {"query": ("attention.q_proj",), "value": ("attention.v_proj",)}
PLACES = {"bert": BERT, "roberta": BERT, "distilbert": DISTILBERT, "t5": T5, "vit": VIT, "deit": VIT, "dinov2": DINOV2}
"""By model type; a family that only LoRA is tried on names what LoRA tunes."""


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def wrap(layer: nn.Module, places: tuple[str, ...], part: Part) -> None:
    """Replace the forwards of an op's modules by ones that ask the part."""
    entry, leaving = layer.get_submodule(places[0]), layer.get_submodule(places[-1])
    seen: list[Tensor] = []
    inner_entry, inner_exit = entry.forward, leaving.forward

    def enter(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(x)
        return inner_entry(part.enter(x), *args, **kwargs)

    def leave(*args: Any, **kwargs: Any) -> Any:
        output = inner_exit(*args, **kwargs)
        y = part.leave(seen.pop(), first(output))
        return (y, *output[1:]) if isinstance(output, tuple) else y

    def both(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = inner_entry(part.enter(x), *args, **kwargs)
        y = part.leave(x, first(output))
        return (y, *output[1:]) if isinstance(output, tuple) else y

    if entry is leaving:
        entry.forward = both
    else:
        entry.forward = enter
        leaving.forward = leave


def by_hand(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Attention as its equation says, with the part that the module was given."""
    batch, heads, length, _ = query.shape
    scale, cap = kwargs.get("scaling"), kwargs.get("softcap")
    tokens = key.shape[2]
    bias = torch.zeros(batch, heads, length, tokens, dtype=query.dtype)
    if kwargs.get("position_bias") is not None:
        bias = bias + kwargs["position_bias"]
    if mask is None and module.is_causal and length > 1:
        mask = torch.arange(length)[:, None] >= torch.arange(tokens)
        mask = mask.expand(batch, 1, length, tokens)
    if mask is not None:
        allowed = mask if mask.dtype == torch.bool else mask == 0
        bias = bias.masked_fill(~allowed, -torch.inf)

    def attention(q: Tensor, k: Tensor, v: Tensor, extra: int = 0) -> Tensor:
        free = torch.zeros(batch, heads, length, extra, dtype=q.dtype)
        k, v = (item.repeat_interleave(heads // item.shape[1], dim=1) for item in (k, v))
        logits = scale * q @ k.transpose(2, 3)
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        logits = logits + torch.cat([free, bias[..., : k.shape[2] - extra]], dim=-1)
        return (logits.softmax(-1) @ v).transpose(1, 2)

    return module.part_by_hand.attend(attention, query, key, value), None


AttentionInterface.register("by_hand", by_hand)


def hang_in(family: str, tuner: nn.Module, layers: nn.ModuleList) -> nn.Module:
    """Copies of a tuner's parts on the model's own layers; the copy of the tuner, whose gradients stand against ours."""
    copied = copy.deepcopy(tuner)
    for op, part in copied.placed:
        places, layer = PLACES[family][op.role], layers[op.layer]
        if part.overrides("enter") or part.overrides("leave"):
            norm = getattr(part, "norm", None)
            if norm:  # a post-norm adapter's frozen norm is that of the live layer
                part.norm = (layer.get_submodule(places[-1].replace("dense", "LayerNorm")),)
            wrap(layer, places, part)
        if part.overrides("attend"):
            attend_by_hand(layer.get_submodule(places[0]), part)
    return copied


def attend_by_hand(module: Any, part: Part) -> None:
    """Let an attention of the library compute its product here."""
    module.config = copy.deepcopy(module.config)
    module.config._attn_implementation = "by_hand"
    module.__dict__["part_by_hand"] = part  # no child of it, so that its gradients are counted once


@contextmanager
def counting(module: nn.Module) -> Iterator[Callable[[], int]]:
    """How often a module ran."""
    calls: list[None] = []
    hook = module.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield lambda: len(calls)
    finally:
        hook.remove()
