"""U-Tuning: learned rows and bottlenecks beside frozen ops, against their own equations."""

import copy

import pytest
import torch
from live_oracle import redraw
from model_cases import loaded_model, ragged_batch, stage_two_of
from torch import Tensor
from tuner_cases import (
    HEADS,
    attention_part,
    bottleneck,
    close,
    draw,
    ffn_of,
    last_layer,
    make,
    only_part,
    plain_attention,
    taps_of,
    zero,
)

from sherl_cache.stages.build import StageTwoRecipe
from sherl_cache.stages.live import LiveModel

pytestmark = pytest.mark.usefixtures("norms_in_float64")


U_OPS = [["attention"], ["ffn"], ["block"], ["attention", "ffn", "block"]]


@pytest.mark.parametrize("family", ["bert", "t5"])
@pytest.mark.parametrize("ops", U_OPS, ids=str)
@pytest.mark.parametrize("reads", ["pre", "post"])
@pytest.mark.parametrize("name", ["u_adapter", "u_prefix"])
def test_u_tuning_checks_zero_second_matrices_are_the_frozen_model_for_every_op(
    name: str, reads: str, ops: list[str], family: str
) -> None:
    model = make(family, name, ops=ops, input=reads)
    for _, part in model.tuner.placed:
        zero(*((part.bottleneck.up, part.bottleneck.up_bias) if name == "u_adapter" else (part.value,)))
    taps = taps_of(family, model)
    tuned = model(taps)
    with model.without_tuner():
        assert torch.equal(model(taps), tuned)


def test_u_adapter_adds_to_a_whole_block_from_its_input_or_its_output() -> None:
    for reads in ("pre", "post"):
        model = make("bert", "u_adapter", input=reads)
        layer, (_, part), x = last_layer(model), only_part(model, "block"), draw(2, 5, 32)
        with model.without_tuner():
            y = layer(x)
        close(layer(x), y + bottleneck(part, x if reads == "pre" else y))


def test_u_prefix_is_a_sum_of_two_attentions_and_no_joint_softmax() -> None:
    added, joint = attention_part("u_prefix"), attention_part("prefix")
    with torch.no_grad():
        joint.key.copy_(added.key)
        joint.value.copy_(added.value)

    def heads(rows: Tensor) -> Tensor:
        return rows.view(len(rows), 2, -1).transpose(0, 1)[None].expand(3, -1, -1, -1)

    found = added.attend(plain_attention, *HEADS)
    close(found, plain_attention(*HEADS) + plain_attention(HEADS[0], heads(added.key), heads(added.value)))
    assert not torch.allclose(found, joint.attend(plain_attention, *HEADS), atol=0.1)


def test_u_tuning_checks_the_order_of_learned_rows_does_not_matter() -> None:
    part = attention_part("u_prefix", length=4)
    before = part.attend(plain_attention, *HEADS)
    with torch.no_grad():
        for rows in (part.key, part.value):
            rows.copy_(rows[[2, 0, 3, 1]].clone())
    close(part.attend(plain_attention, *HEADS), before)
    assert not torch.allclose(before, plain_attention(*HEADS))


def test_u_prefix_beside_an_ffn_lets_the_rows_ask() -> None:
    model = make("bert", "u_prefix", ops=["ffn"])
    layer, (_, part), x = last_layer(model), only_part(model, "ffn"), draw(2, 5, 32)
    asked = (x @ part.key.T / 32**0.5).softmax(-1) @ part.value
    close(layer.feed_forward_chunk(x), copy.deepcopy(layer.output.LayerNorm)(x + ffn_of(layer, x) + asked))


def test_u_prompt_makes_keys_and_values_by_the_frozen_projections_behind_the_frozen_norm() -> None:
    for family, normed in (("bert", False), ("t5", True)):
        model = make(family, "u_prompt")
        layer, (_, part) = last_layer(model), only_part(model, "attention")
        rows = part.rows
        if normed:
            inner = layer.layer[0]
            rows = inner.layer_norm.weight * rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + 1e-6)
            expected = (rows @ inner.SelfAttention.k.weight.T, rows @ inner.SelfAttention.v.weight.T)
        else:
            inner = layer.attention.self
            expected = tuple(rows @ item.weight.T + item.bias for item in (inner.key, inner.value))
        for found, value in zip(part.keys_and_values(), expected, strict=True):
            close(found, value)


def test_in_the_live_model_a_tuned_first_block_reads_the_fused_state_and_not_the_one_it_replaced() -> None:
    """Oracle: stage two, of which the block is given nothing but the fused state."""
    model = stage_two_of(
        loaded_model("bert", "float64"), StageTwoRecipe(fusion="sherl", tuner="u_adapter"), torch.float64
    ).eval()
    redraw(model, seed=5)
    live = LiveModel(loaded_model("bert", "float64"), model).logits(ragged_batch("bert"))
    close(live, model(taps_of("bert", model)).detach())
