"""Learned keys and values in front of those of the tokens."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..contract import Attention, Op, OpOptions, OpPart, OpTuner, Part, split_heads


class Config(OpOptions):
    length: int = Field(default=16, ge=1, description="How many keys and values an attention gets.")
    hidden: int | None = Field(
        default=None,
        ge=1,
        description="Inner width of one network that makes all of them while training; null: they train themselves.",
    )
    init_std: float = Field(default=0.02, gt=0, description="Standard deviation of new weights.")


class Generator(nn.Module):
    """W2 tanh(W1 E + b1) + b2: all keys and values of a tuner, [length, sum of their widths]."""

    def __init__(self, config: Config, width: int, out_width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(config.length, width))
        self.inner = nn.Linear(width, config.hidden or width)
        self.outer = nn.Linear(config.hidden or width, out_width)
        nn.init.normal_(self.embedding, std=1.0)

    def forward(self, first: int, width: int) -> Tensor:
        """Columns first to first + width."""
        weight, bias = self.outer.weight[first : first + width], self.outer.bias[first : first + width]
        return F.linear(torch.tanh(self.inner(self.embedding)), weight, bias)


class PrefixPart(OpPart):
    """Attention over [P_k; K] and [P_v; V]; P_k [p, width of the keys], P_v likewise."""

    def __init__(self, config: Any, op: Op) -> None:
        super().__init__(config, op)
        self.key, self.value = (
            nn.Parameter(torch.randn(config.length, op.within(role).out_width) * config.init_std)
            for role in ("key", "value")
        )

    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        return self.key, self.value

    def attend(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        own_key, own_value = self.keys_and_values()
        keys = torch.cat([split_heads(own_key, key), key], dim=2)
        values = torch.cat([split_heads(own_value, value), value], dim=2)
        return attention(query, keys, values, extra=len(own_key))


class GeneratedPrefixPart(PrefixPart):
    """A prefix of which a shared generator makes the columns from `first` on."""

    def __init__(self, config: Any, op: Op, generator: Generator, first: int) -> None:
        OpPart.__init__(self, config, op)
        self.generator = (generator,)  # in a tuple: it is the tuner's module, and has its name there
        self.first = first
        self.widths = [op.within(role).out_width for role in ("key", "value")]

    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        (generator,) = self.generator
        key, value = self.widths
        made: Tensor = generator(self.first, key + value)
        return made[:, :key], made[:, key:]


class Prefix(OpTuner):
    """Learned keys and values that every query sees, in the same softmax as those of the tokens.

    The exact form: keys and values are concatenated. They have no position. It does not start as the identity, not even
    with zeros, since a key of zero takes its share of the softmax. With `hidden`, one network makes the keys and values
    of all layers; `folded_state` gives what it makes as the state of a tuner without. 2 p d parameters an attention.
    """

    source = "Li & Liang 2021, Prefix-tuning, arXiv:2101.00190, equation 3"
    Config = Config
    part = PrefixPart
    default_ops = ("attention", "cross_attention")
    kinds = ("attention",)
    starts_as_identity = False

    def share(self, ops: tuple[Op, ...]) -> None:
        self.taken = 0
        if self.config.hidden is not None:
            total = sum(op.within(role).out_width for op in ops for role in ("key", "value"))
            self.generator = Generator(self.config, ops[0].in_width, total)

    def build(self, op: Op) -> Part:
        if self.config.hidden is None:
            return PrefixPart(self.config, op)
        part = GeneratedPrefixPart(self.config, op, self.generator, self.taken)
        self.taken += sum(part.widths)
        return part

    def folded_state(self) -> dict[str, Tensor]:
        """Keys and values by the names that they have in a tuner of the same options without `hidden`."""
        state: dict[str, Tensor] = {}
        for op, part in self.placed:
            assert isinstance(part, PrefixPart)
            key, value = part.keys_and_values()
            state |= {f"{op.name}.key": key.detach().clone(), f"{op.name}.value": value.detach().clone()}
        return state
