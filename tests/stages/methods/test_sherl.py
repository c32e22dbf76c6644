"""SHERL's fusion against its equations, token by token, and the behaviours a faithful copy must show."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sherl_cache.stages.methods.contract import Packed, StreamSpec
from sherl_cache.stages.methods.fusion.sherl import Sherl, SherlBlock, SherlConfig
from sherl_cache.storage.errors import RecipeError


def encoder_only(width: int = 16, depth: int = 4, late: int = 1) -> dict[str, StreamSpec]:
    spec = StreamSpec(name="encoder", width=width, depth=depth, late=late, exit="late", encoder_decoder=False)
    return {"encoder": spec}


def encoder_decoder(width: int, depth: int, late: int = 1) -> dict[str, StreamSpec]:
    return {
        "encoder": StreamSpec(name="encoder", width=width, depth=depth, late=0, exit="memory", encoder_decoder=True),
        "decoder": StreamSpec(name="decoder", width=width, depth=depth, late=late, exit="late", encoder_decoder=True),
    }


def make_block(
    taps: int, width: int = 16, reduction: int = 2, *, gate: bool = True, official_exact: bool = False
) -> SherlBlock:
    config = SherlConfig(reduction=reduction, gate=gate, official_exact=official_exact)
    spec = encoder_only(width, depth=taps)["encoder"]
    return SherlBlock(config, spec, tuple(range(taps))).double()


def redraw(block: SherlBlock, seed: int) -> SherlBlock:
    """Every trainable away from where it starts: at a gate of 0 and biases of 0 mistakes would not show."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64) * 0.5)
        if block.gate is not None:
            block.gate.copy_(0.3 + 0.7 * torch.rand((), generator=random, dtype=torch.float64))
    return block


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def straight_line(block: SherlBlock, taps: Tensor) -> tuple[Tensor, Tensor]:
    """The published equations for one token and one tap at a time: fused rows [N, D] and weights [N, K-1]."""
    depth, tokens, _ = taps.shape
    d = block.reduce_weight.shape[2]
    rows, all_weights = [], []
    for t in range(tokens):
        features = []
        for k in range(depth):
            w1 = block.reduce_weight[k].T
            w2 = block.refine_weight[k][:, :d].T
            w3 = block.refine_weight[k][:, d:].T
            b2, b3 = block.refine_bias[k, 0, :d], block.refine_bias[k, 0, d:]
            u = torch.clamp(w1.mv(taps[k, t]) + block.reduce_bias[k, 0], min=0)
            features.append((w2.mv(u) + b2 + u) / (1 + torch.exp(-(w3.mv(u) + b3))))
        shallow, guide = features[:-1], features[-1]
        unit = [f / (f.dot(f) ** 0.5 + 1e-6) for f in shallow]
        shares = []
        for k, feature in enumerate(shallow):
            said = sum(torch.clamp(unit[k].dot(other), min=0) for other in unit)
            score = block.score.weight[0].dot(feature * guide) + block.score.bias[0]
            shares.append(torch.clamp(score, min=0) / said)
        total = sum(abs(share) for share in shares) + 1e-6
        weights = [share / total for share in shares]
        fused = guide
        for weight, feature in zip(weights, shallow, strict=True):
            fused = fused + weight * feature
        row = block.expand.weight.mv(torch.clamp(fused, min=0)) + block.expand.bias
        gate = 1.0 if block.gate is None else torch.tanh(block.gate / 0.1)
        rows.append(row + gate * taps[-1, t])
        all_weights.append(torch.stack(weights))
    return torch.stack(rows), torch.stack(all_weights)


@settings(max_examples=25, deadline=None)
@given(
    taps=st.integers(2, 5),
    tokens=st.integers(1, 4),
    bottleneck=st.integers(1, 5),
    reduction=st.sampled_from([1, 2, 3]),
    gate=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_sherl_equals_the_straight_line_equations_by_value_and_gradient(
    taps: int, tokens: int, bottleneck: int, reduction: int, gate: bool, seed: int
) -> None:
    width = bottleneck * reduction
    block = redraw(make_block(taps, width, reduction, gate=gate), seed)
    inputs = draw(taps, tokens, width, seed=seed + 1).requires_grad_()
    ours, weights = block(inputs), block.weights(inputs)
    expected, expected_weights = straight_line(block, inputs)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-10, atol=1e-10)

    direction = draw(tokens, width, seed=seed + 2)
    leaves = [inputs, *block.parameters()]
    got = torch.autograd.grad((ours * direction).sum(), leaves)
    want = torch.autograd.grad((expected * direction).sum(), leaves, materialize_grads=True)
    for name, a, b in zip(["taps", *(n for n, _ in block.named_parameters())], got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


def test_behaviour_1_a_gate_of_zero_hides_the_deepest_tap_and_has_a_tenfold_gradient() -> None:
    block = redraw(make_block(3), seed=1)
    with torch.no_grad():
        block.gate.zero_()
        block.reduce_weight[-1].zero_()  # the guide no longer sees the deepest tap; only the residual does
    taps = draw(3, 5, 16)
    other = taps.clone()
    other[-1] = 1e6 * draw(5, 16, seed=9)
    assert torch.equal(block(taps), block(other))

    direction = draw(5, 16, seed=2)
    (gradient,) = torch.autograd.grad((block(taps) * direction).sum(), [block.gate])
    torch.testing.assert_close(gradient, 10 * (direction * taps[-1]).sum())


def test_behaviour_2_every_parameter_has_a_gradient_on_the_first_backward() -> None:
    torch.manual_seed(0)
    streams = encoder_decoder(width=128, depth=12)
    fusion = Sherl.from_options({}, streams)
    packed = {
        name: Packed(torch.randn(len(fusion.taps[name]), 20, 128), torch.tensor([12, 8]), fusion.taps[name])
        for name in streams
    }
    fused = fusion(packed)
    sum((out.rows * torch.randn(20, 128)).sum() for out in fused.values()).backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("official_exact", [False, True])
@pytest.mark.parametrize("length", [1e-6, 1e-5, 1e-3, 1.0])
def test_behaviour_3_redundancy_of_a_lone_feature_is_its_shrunken_square(length: float, official_exact: bool) -> None:
    block = make_block(2, official_exact=official_exact)
    feature = torch.zeros(1, 1, 8, dtype=torch.float64)
    feature[..., 3] = length
    expected = torch.tensor([[(length / (length + 1e-6)) ** 2]], dtype=torch.float64)
    torch.testing.assert_close(block.redundancy(feature), expected, rtol=1e-9, atol=0)


def test_behaviour_3_redundancy_counts_like_features_and_not_opposite_ones() -> None:
    block = make_block(5)
    x = draw(1, 6, 8)
    torch.testing.assert_close(block.redundancy(x.repeat(4, 1, 1)), torch.full((6, 4), 4.0).double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(block.redundancy(torch.cat([x, -x])), torch.ones(6, 2).double(), rtol=1e-5, atol=0)
    assert block.redundancy(draw(4, 500, 8)).min() > 0.9999


@pytest.mark.parametrize("copies", [1, 3, 6])
def test_behaviour_4_duplicates_share_one_vote(copies: int) -> None:
    block = make_block(copies + 2)
    with torch.no_grad():
        block.score.weight.zero_()
        block.score.bias.fill_(1.0)
    axes = torch.eye(8, dtype=torch.float64)
    shallow = torch.stack([axes[:1], *[axes[1:2]] * copies])  # [1 + copies, 1, 8]
    expected = torch.tensor([[1 / 2] + [1 / (2 * copies)] * copies], dtype=torch.float64)
    torch.testing.assert_close(block.weigh(shallow, axes[:1]), expected, rtol=1e-5, atol=0)


def test_behaviour_5_weights_are_shares_of_the_positive_scores() -> None:
    block = redraw(make_block(5), seed=5)
    shallow, guide = draw(4, 40, 8), draw(40, 8, seed=1)
    weights = block.weigh(shallow, guide)
    total = (torch.relu(block.score(shallow * guide).squeeze(-1).T) / block.redundancy(shallow)).sum(-1)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), total / (total + 1e-6))
    assert (weights.sum(-1) < 1).all()


def test_behaviour_5_without_a_positive_score_only_the_guide_is_left() -> None:
    block = redraw(make_block(4), seed=6)
    with torch.no_grad():
        block.score.weight.zero_()
        block.score.bias.fill_(-1.0)
    taps = draw(4, 7, 16)
    assert torch.equal(block.weights(taps), torch.zeros(7, 3).double())
    guide = block.features(taps)[-1]
    torch.testing.assert_close(block(taps), block.expand(torch.relu(guide)) + torch.tanh(block.gate / 0.1) * taps[-1])


def test_behaviour_6_the_scale_of_the_scores_does_not_matter() -> None:
    block = redraw(make_block(4), seed=7)
    taps = draw(4, 30, 16)
    before = block(taps)
    with torch.no_grad():
        block.score.weight.mul_(37)
        block.score.bias.mul_(37)
    torch.testing.assert_close(block(taps), before, rtol=0, atol=1e-3)


def permuted(block: SherlBlock, order: list[int]) -> None:
    with torch.no_grad():
        for name in ("reduce_weight", "reduce_bias", "refine_weight", "refine_bias"):
            parameter = getattr(block, name)
            parameter.copy_(parameter[order].clone())


def test_behaviour_7_shallow_taps_have_no_order_of_their_own_and_the_guide_has() -> None:
    taps, order = draw(4, 9, 16), [2, 0, 1, 3]
    block = redraw(make_block(4), seed=8)
    before = block(taps)
    assert not torch.allclose(block(taps[order]), before, atol=1e-3)
    permuted(block, order)
    torch.testing.assert_close(block(taps[order]), before, rtol=1e-12, atol=1e-12)

    permuted(block, [0, 0, 0, 0])  # equal projections
    torch.testing.assert_close(block(taps[order]), block(taps), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(block(taps[[3, 1, 2, 0]]), block(taps), atol=1e-3)


def test_behaviour_8_a_token_alone_equals_the_token_in_a_batch() -> None:
    block = redraw(make_block(4), seed=9).float()
    taps = draw(4, 11, 16).float()
    alone = torch.cat([block(taps[:, t : t + 1]) for t in range(11)])
    torch.testing.assert_close(block(taps), alone, rtol=1e-5, atol=1e-5)


def test_behaviour_9_a_single_shallow_tap_weighs_all_or_nothing() -> None:
    block = redraw(make_block(2), seed=10)
    shallow, guide = draw(1, 200, 8), draw(200, 8, seed=1)
    score = torch.relu(block.score(shallow * guide).squeeze(-1).T) / block.redundancy(shallow)
    weights = block.weigh(shallow, guide)
    torch.testing.assert_close(weights, score / (score + 1e-6))
    assert (weights == 0).any()
    assert (weights > 0.99).any()


def deaden(block: SherlBlock, tap: int) -> None:
    """No unit of this tap fires, whatever the row, and its biases are zero: features of zero."""
    with torch.no_grad():
        block.reduce_bias[tap] = -1e3
        block.refine_bias[tap] = 0


@pytest.mark.parametrize("score_bias", [0.0, 0.4, -0.4])
@pytest.mark.parametrize("case", ["zero rows", "one zero tap", "dead shallow tap", "dead guide", "all dead"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_behaviour_10_dead_taps_and_rows_of_zeros_are_finite_in_value_and_gradient(
    case: str, score_bias: float, dtype: torch.dtype
) -> None:
    block = redraw(make_block(4), seed=11)
    taps = draw(4, 6, 16)
    with torch.no_grad():
        block.score.bias.fill_(score_bias)
        if "zero" in case:
            for bias in (block.reduce_bias, block.refine_bias, block.expand.bias):
                bias.zero_()
    if case == "zero rows":
        taps[:, 2:4] = 0
    elif case == "one zero tap":
        taps[1, :3] = 0
    else:
        for tap in {"dead shallow tap": [1], "dead guide": [3], "all dead": [0, 1, 2, 3]}[case]:
            deaden(block, tap)
    block, taps = block.to(dtype), taps.to(dtype).requires_grad_()
    block.floored = False
    official = block(taps)
    if case != "dead guide":  # what the floor is for
        assert official.isnan().any()
    block.floored = True
    fused = block(taps)
    gradients = torch.autograd.grad(fused.square().sum(), [taps, *block.parameters()])
    assert fused.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    sound = official.isfinite().all(-1)
    assert torch.equal(fused[sound], official[sound])


def test_behaviour_10_the_floor_changes_no_value_or_gradient_of_live_rows() -> None:
    taps = draw(4, 50, 16).requires_grad_()
    results = []
    for official_exact in (False, True):
        block = redraw(make_block(4, official_exact=official_exact), seed=12)
        fused = block(taps)
        gradients = torch.autograd.grad(fused.square().sum(), [taps, *block.parameters()])
        results.append([fused, *gradients])
    for floored, official in zip(*results, strict=True):
        torch.testing.assert_close(floored, official, rtol=1e-12, atol=1e-12)


THREE_BILLION = {"encoder": {"taps": "0,23,24"}, "decoder": {"taps": "0,23"}}


@pytest.mark.parametrize(
    ("width", "depth", "options", "trainable"),
    [
        pytest.param(768, 12, {}, 1_907_236, id="T5-base"),
        pytest.param(1024, 24, {}, 4_700_548, id="T5-large"),
        pytest.param(1024, 24, THREE_BILLION, 1_087_620, id="T5-3B"),
    ],
)
def test_behaviour_11_parameter_counts_equal_the_published_ones(
    width: int, depth: int, options: dict[str, object], trainable: int
) -> None:
    streams = encoder_decoder(width, depth)
    with torch.device("meta"):
        fusion = Sherl.from_options(options, streams)
    final_norms = width * len(streams)  # one new norm a stream, which the model holds
    assert sum(parameter.numel() for parameter in fusion.parameters()) + final_norms == trainable


@pytest.mark.parametrize(("reduction", "percent"), [(2, 5.304), (4, 2.024), (8, 0.856), (16, 0.389), (32, 0.186)])
def test_behaviour_11_shares_of_t5_base_equal_the_published_ones(reduction: int, percent: float) -> None:
    with torch.device("meta"):
        fusion = Sherl.from_options({"reduction": reduction}, encoder_decoder(768, 12))
    count = sum(parameter.numel() for parameter in fusion.parameters()) + 2 * 768
    assert round(100 * count / 222_882_048, 3) == percent


def test_behaviour_15_the_final_norm_after_the_fusion_is_a_new_one() -> None:
    assert Sherl.exit_norm == "new"


def test_behaviour_19_without_a_gate_the_deepest_tap_is_added_as_it_is() -> None:
    gated, plain = redraw(make_block(3), seed=13), redraw(make_block(3, gate=False), seed=13)
    with torch.no_grad():
        gated.gate.fill_(math.inf)  # tanh of it is 1
        state = {name: value for name, value in gated.state_dict().items() if name != "gate"}
    plain.load_state_dict(state)
    taps = draw(3, 4, 16)
    torch.testing.assert_close(plain(taps), gated(taps), rtol=1e-14, atol=1e-14)


def test_published_taps_are_block_outputs_and_stop_at_the_late_blocks() -> None:
    assert Sherl.reads({}, encoder_decoder(768, 12)) == {
        "encoder": (0, 2, 3, 4, 6, 7, 8, 10, 11, 12),
        "decoder": (0, 2, 3, 4, 6, 7, 8, 10, 11),
    }
    assert Sherl.reads({}, encoder_decoder(768, 12, late=3))["decoder"] == (0, 2, 3, 4, 6, 7, 8, 9)
    assert len(Sherl.reads({}, encoder_decoder(1024, 24))["decoder"]) == 13
    assert Sherl.reads({}, encoder_decoder(512, 6))["decoder"] == (0, 1, 2, 3, 4, 5)
    assert Sherl.reads({}, encoder_only(depth=12))["encoder"] == tuple(range(12))


def test_new_weights_have_the_published_spread_and_biases_of_zero() -> None:
    for streams, std, bottleneck in ((encoder_decoder(512, 12), 0.01, 64), (encoder_only(256, 6), 0.02, 128)):
        torch.manual_seed(0)
        block = Sherl.from_options({}, streams).blocks["encoder"]
        assert block.reduce_weight.shape[2] == bottleneck
        for weight in (block.reduce_weight, block.refine_weight, block.expand.weight):
            assert weight.std().item() == pytest.approx(std, rel=0.03)
        for name, parameter in block.named_parameters():
            assert not name.endswith("bias") or not parameter.any(), name
        assert block.gate.item() == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"taps": "-1"}, ["fusion.taps", "guide", "shallow"]),
        ({"taps": "0,1"}, ["fusion.taps", "h03", "add -1"]),
        ({"reduction": 17}, ["fusion.reduction", "16"]),
        ({"reduction": 0}, ["fusion.reduction", "0"]),
        ({"init_std": -1}, ["fusion.init_std", "-1"]),
    ],
)
def test_impossible_options_are_refused_by_key(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        Sherl.from_options(options, encoder_only())
    assert all(word in str(caught.value) for word in words)


def test_a_stream_without_early_blocks_leaves_nothing_to_fuse_and_is_refused() -> None:
    with pytest.raises(RecipeError, match="more blocks before the late ones"):
        Sherl.reads({}, encoder_only(depth=2, late=2))
