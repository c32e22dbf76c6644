"""Adapters, parallel adapters, (IA)^3 and BitFit against their own equations."""

import copy

import pytest
import torch
from torch.nn import functional as F
from tuner_cases import bottleneck, close, draw, ffn_of, last_layer, make, only_part, taps_of, zero

pytestmark = pytest.mark.usefixtures("norms_in_float64")


@pytest.mark.parametrize("family", ["bert", "t5"])
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_adapters_check_1_with_a_second_matrix_of_zeros_the_block_is_the_frozen_one(
    family: str, placement: str
) -> None:
    model = make(family, "adapter", placement=placement)
    for _, part in model.tuner.placed:
        zero(part.bottleneck.up, part.bottleneck.up_bias)
    taps = taps_of(family, model)
    tuned = model(taps)
    with model.without_tuner():
        assert torch.equal(model(taps), tuned)


def test_adapters_check_2_houlsby_adds_before_residual_and_norm_and_pfeiffer_applies_the_norm_twice() -> None:
    for placement in ("houlsby", "pfeiffer"):
        model = make("bert", "adapter", placement=placement)
        layer, (_, part) = last_layer(model), only_part(model, "ffn")
        x = draw(2, 5, 32)
        plain = copy.deepcopy(layer.output.LayerNorm)
        g = ffn_of(layer, x)
        read = g if placement == "houlsby" else plain(x + g)
        expected = plain(x + g + bottleneck(part, read))
        found = layer.feed_forward_chunk(x)
        close(found, expected)


def test_adapters_check_2_in_a_pre_norm_block_both_placements_read_the_output() -> None:
    for placement in ("houlsby", "pfeiffer"):
        model = make("t5", "adapter", placement=placement)
        layer, (_, part) = last_layer(model).layer[-1], only_part(model, "ffn")
        x = draw(2, 5, 16)
        with model.without_tuner():
            g = layer(x) - x
        close(layer(x), x + g + bottleneck(part, g))


def test_adapters_check_3_only_the_adapters_and_the_head_train() -> None:
    model = make("bert", "adapter", placement="pfeiffer")
    model(taps_of("bert", model)).sum().backward()
    names = set(model.trained_parameters())
    assert names == {
        *(f"tuner.encoder.3.ffn.bottleneck.{name}" for name in ("down", "down_bias", "up", "up_bias")),
        "head.linear.weight",
        "head.linear.bias",
    }
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == names


def test_parallel_adapter_reads_what_enters_the_ffn_and_scales_its_bias_too() -> None:
    """MAM check 3: other frozen FFN weights leave what is added unchanged, and change it for a sequential adapter."""
    x = draw(2, 5, 32)
    added = {}
    for name in ("parallel_adapter", "adapter"):
        model = make("bert", name, ops=["ffn"])
        layer, (_, part) = last_layer(model), only_part(model, "ffn")
        plain = ffn_of(layer, x)
        added[name] = [part.leave(x, plain) - plain, part.leave(x, 2 * plain) - 2 * plain]
        if name == "parallel_adapter":
            close(added[name][0], 4.0 * bottleneck(part, x, F.relu))
            half = make("bert", name, ops=["ffn"], scale=2.0)
            close(2 * (only_part(half, "ffn")[1].leave(x, plain) - plain), added[name][0])
            close(
                layer.feed_forward_chunk(x),
                copy.deepcopy(layer.output.LayerNorm)(x + plain + 4.0 * bottleneck(part, x, F.relu)),
            )
    close(*added["parallel_adapter"])
    assert not torch.allclose(*added["adapter"])


def test_ia3_scales_keys_values_and_what_enters_the_second_ffn_matrix() -> None:
    model = make("bert", "ia3")
    layer, x = last_layer(model), draw(2, 5, 32)
    scale = {op.role: part.scale for op, part in model.tuner.placed}
    assert set(scale) == {"key", "value", "ffn_out"}
    key, inner, outer = layer.attention.self.key, layer.intermediate.dense, layer.output.dense
    close(key(x), (x @ key.weight.T + key.bias) * (1 + scale["key"]))
    hidden = F.gelu(x @ inner.weight.T + inner.bias) * (1 + scale["ffn_out"])
    close(outer(F.gelu(inner(x))), hidden @ outer.weight.T + outer.bias)


def test_bitfit_checks_the_key_bias_has_no_gradient_and_the_query_bias_has() -> None:
    model = make("bert", "bitfit")
    output = model(taps_of("bert", model))
    (output * draw(*output.shape)).sum().backward()
    gradient = {op.role: part.bias.grad.abs().max() for op, part in model.tuner.placed}
    assert gradient["key"] < 1e-6
    assert gradient["query"] > 1e-4


def test_bitfit_checks_a_constant_on_the_last_bias_shifts_a_pre_norm_residual_by_it() -> None:
    model = make("t5", "bitfit", drawn=False, ops=["ffn_out"])
    layer, x = last_layer(model).layer[-1], draw(2, 5, 16)
    before = layer(x)
    with torch.no_grad():
        only_part(model, "ffn_out")[1].bias.fill_(0.75)
    close(layer(x), before + 0.75)
