"""Prefix tuning against the gated sum of two attentions."""

import pytest
import torch
from torch import Tensor
from tuner_cases import HEADS, attention_part, close, make, plain_attention, taps_of, zero

from sherl_cache.stages.methods.contract import Part
from sherl_cache.stages.methods.tuner.prefix import Prefix

pytestmark = pytest.mark.usefixtures("norms_in_float64")


def gated(part: Part, query: Tensor, key: Tensor, value: Tensor, closed: bool = False) -> Tensor:
    """(1 - g) Attn(q, K, V) + g Attn(q, P_k, P_v), with g the share of the softmax that falls on the prefix."""

    def heads(rows: Tensor) -> Tensor:
        return rows.view(len(rows), 2, -1).transpose(0, 1)[None]

    own, tokens = (query @ item.transpose(2, 3) for item in (heads(part.key), key))
    share = torch.sigmoid(own.logsumexp(-1) - tokens.logsumexp(-1)).transpose(1, 2).unsqueeze(-1)
    share = torch.zeros_like(share) if closed else share
    learned = (own.softmax(-1) @ heads(part.value)).transpose(1, 2)
    return (1 - share) * plain_attention(query, key, value) + share * learned


def test_prefix_checks_concatenation_equals_the_gated_sum() -> None:
    part = attention_part("prefix")
    close(part.attend(plain_attention, *HEADS), gated(part, *HEADS))


def test_prefix_checks_order_does_not_matter_and_a_closed_gate_is_the_frozen_attention() -> None:
    part = attention_part("prefix", length=4)
    before = part.attend(plain_attention, *HEADS)
    assert not torch.allclose(before, plain_attention(*HEADS))
    close(gated(part, *HEADS, closed=True), plain_attention(*HEADS))
    with torch.no_grad():
        for rows in (part.key, part.value):
            rows.copy_(rows[[2, 0, 3, 1]].clone())
    close(part.attend(plain_attention, *HEADS), before)


def test_prefix_pitfall_zeros_are_not_the_identity() -> None:
    part = attention_part("prefix")
    zero(part.key, part.value)
    assert not torch.allclose(part.attend(plain_attention, *HEADS), plain_attention(*HEADS), atol=0.1)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_prefix_checks_a_generated_prefix_folds_to_stored_keys_and_values(family: str) -> None:
    model = make(family, "prefix", late=2, hidden=7, length=5)
    stored = make(family, "prefix", late=2, length=5)
    assert isinstance(model.tuner, Prefix)
    stored.tuner.load_state_dict(model.tuner.folded_state())
    others = {name: value for name, value in model.trainable_state_dict().items() if not name.startswith("tuner.")}
    stored.load_trainable_state_dict({**stored.trainable_state_dict(), **others})
    taps = taps_of(family, model)
    close(stored(taps), model(taps))
