"""How a transformer layer is put together: what a table says of a family's layers, and what a method builds by it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RelativePositions:
    """A learned bias on attention scores, one number a head and bucket of distances (Raffel et al. 2020,
    arXiv 1910.10683, section 2.1): distances up to half of a direction's buckets have one each, longer ones
    share logarithmically, and all from `farthest` on share the last.
    """

    buckets: int
    farthest: int
    both_ways: bool
    """Half of the buckets for what lies ahead; else what lies ahead counts as distance 0."""


Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]
_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


def known_activation(name: str) -> Activation | None:
    """The activation that a config calls so; None where no layer can be put together with it."""
    return _ACTIVATIONS.get(name)


@dataclass(frozen=True, kw_only=True)
class LayerForm:
    """Attention, attention to another stream where there is one, feed-forward; each with a residual and a norm."""

    heads: int
    head_width: int
    ffn_width: int
    norm_first: bool
    """x + f(norm(x)); else norm(x + f(x))."""
    norm: Literal["layer", "rms"]
    norm_eps: float
    activation: Activation
    gated: bool = False
    """ffn_out(activation(ffn_gate(x)) * ffn_in(x)), with three matrices."""
    bias: bool = True
    """Of every matrix."""
    scaled: bool = True
    """Scores are divided by the root of head_width."""
    causal: bool = False
    memory: bool = False
    """Attends to another stream between its own attention and the feed-forward."""
    relative: RelativePositions | None = None
    """Bias on the scores of its own attention; the first layer of a stack owns it for all."""
