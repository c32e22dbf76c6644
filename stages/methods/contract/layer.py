"""A transformer layer by its form, on padded batches: trained at a side network's width, or frozen at the model's own."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ...layer_form import LayerForm, RelativePositions

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
}


def make_norm(form: LayerForm, width: int) -> nn.Module:
    """A new norm of the form's kind over `width` values."""
    kind = nn.RMSNorm if form.norm == "rms" else nn.LayerNorm
    return kind(width, eps=form.norm_eps)


class Layer(nn.Module):
    """One layer of width D. Its modules carry the names of roles: query, key, value, out, attention_norm; cross_query,
    cross_key, cross_value, cross_out, cross_norm where it attends to a memory; ffn_in, ffn_gate where it is gated,
    ffn_out, ffn_norm.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    attention_norm: nn.Module
    ffn_gate: nn.Linear

    def __init__(self, form: LayerForm, width: int) -> None:
        super().__init__()
        self.form, self.width = form, width
        inner = form.heads * form.head_width
        for prefix in ("", "cross_") if form.memory else ("",):
            for role in ("query", "key", "value"):
                self.add_module(prefix + role, nn.Linear(width, inner, bias=form.bias))
            self.add_module(f"{prefix}out", nn.Linear(inner, width, bias=form.bias))
            self.add_module("cross_norm" if prefix else "attention_norm", make_norm(form, width))
        self.ffn_in = nn.Linear(width, form.ffn_width, bias=form.bias)
        if form.gated:
            self.ffn_gate = nn.Linear(width, form.ffn_width, bias=form.bias)
        self.ffn_out = nn.Linear(form.ffn_width, width, bias=form.bias)
        self.ffn_norm = make_norm(form, width)

    def forward(
        self,
        states: Tensor,
        mask: Tensor,
        bias: Tensor | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """[S, T, D] -> [S, T, D].

        mask: [S, T], nonzero where a token is; bias: [H, T, T] on the scores; memory: [S, M, D] and its mask [S, M].
        """
        allowed = mask.bool()[:, None, None, :]
        if self.form.causal:
            steps = torch.arange(states.shape[1], device=states.device)
            allowed = allowed & (steps <= steps.unsqueeze(1))
        states = self.join("attention", states, lambda x: self.attend("", x, x, allowed, bias))
        if self.form.memory:
            if memory is None:
                raise ValueError("this layer attends to another stream, and was given none")
            others, there = memory
            seen = there.bool()[:, None, None, :]
            states = self.join("cross", states, lambda x: self.attend("cross_", x, others, seen, None))
        return self.join("ffn", states, self.feed_forward)

    def join(self, step: str, states: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
        """One step (`attention`, `cross` or `ffn`) with its residual and its norm, before or after as the form says."""
        norm = self.get_submodule(f"{step}_norm")
        if self.form.norm_first:
            return states + operation(norm(states))
        joined: Tensor = norm(states + operation(states))
        return joined

    def attention_input(self, states: Tensor) -> Tensor:
        """What query, key and value read of the layer's input."""
        if not self.form.norm_first:
            return states
        normed: Tensor = self.attention_norm(states)
        return normed

    def attend(self, prefix: str, states: Tensor, memory: Tensor, allowed: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of states [S, T, D] to memory [S, M, D]; allowed: bool, of the shape of scores [S, H, T, M]."""
        query = self.split(self.get_submodule(f"{prefix}query")(states))
        key = self.split(self.get_submodule(f"{prefix}key")(memory))
        value = self.split(self.get_submodule(f"{prefix}value")(memory))
        scores = query @ key.transpose(-1, -2) * self.score_scale
        if bias is not None:
            scores = scores + bias
        shares = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1)
        read: Tensor = self.get_submodule(f"{prefix}out")((shares @ value).transpose(1, 2).flatten(2))
        return read

    def feed_forward(self, states: Tensor) -> Tensor:
        activation, inside = _ACTIVATIONS[self.form.activation], self.ffn_in(states)
        hidden = activation(self.ffn_gate(states)) * inside if self.form.gated else activation(inside)
        out: Tensor = self.ffn_out(hidden)
        return out

    def split(self, rows: Tensor) -> Tensor:
        """[S, T, H * k] -> [S, H, T, k]."""
        return self.by_head(rows).transpose(1, 2)

    def by_head(self, rows: Tensor) -> Tensor:
        """[.., H * k] -> [.., H, k]."""
        return rows.view(*rows.shape[:-1], self.form.heads, self.form.head_width)

    @property
    def score_scale(self) -> float:
        return self.form.head_width**-0.5 if self.form.scaled else 1.0


class RelativeBias(nn.Module):
    """The bias on attention scores that the layers of a stack share."""

    def __init__(self, positions: RelativePositions, heads: int) -> None:
        super().__init__()
        self.positions = positions
        self.weight = nn.Parameter(torch.zeros(positions.buckets, heads))

    def forward(self, length: int) -> Tensor:
        """[H, T, T] for T tokens."""
        places = torch.arange(length, device=self.weight.device)
        distance = places - places.unsqueeze(1)  # of what is attended to, seen from who attends
        return self.weight[relative_buckets(distance, self.positions)].permute(2, 0, 1)


def relative_buckets(distance: Tensor, positions: RelativePositions) -> Tensor:
    """Bucket numbers of signed distances in tokens, int64 of the same shape."""
    buckets, ahead = positions.buckets, torch.zeros_like(distance)
    if positions.both_ways:
        buckets //= 2
        ahead = (distance > 0).long() * buckets
        steps = distance.abs()
    else:
        steps = (-distance).clamp_min(0)
    exact = buckets // 2
    share = (steps.clamp_min(1).float() / exact).log() / math.log(positions.farthest / exact)
    far = (exact + (share * (buckets - exact)).long()).clamp_max(buckets - 1)
    return ahead + torch.where(steps < exact, steps, far)


def frozen_layer(form: LayerForm, width: int, weights: Mapping[str, Tensor]) -> Layer:
    """A layer with these weights (`query.weight`, ...), in eval mode; nothing of it trains.

    Raises KeyError where a role has no weights.
    """
    with torch.device("meta"):
        layer = Layer(form, width)
    own = layer.state_dict()
    layer.load_state_dict({name: weights[name] for name in own}, assign=True)
    return layer.eval().requires_grad_(False)
