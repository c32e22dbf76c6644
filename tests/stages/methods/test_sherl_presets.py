"""SHERL's published forms: what each preset is made of, and its equations written out."""

import pytest
import torch
from torch import Tensor

from sherl_cache.stages.methods.contract import Packed, StreamSpec
from sherl_cache.stages.methods.fusion._sherl_parts import PRESETS
from sherl_cache.stages.methods.fusion.sherl import Sherl, SherlBlock, SherlConfig
from sherl_cache.storage.errors import RecipeError

COUNT, WIDTH = 4, 16
LENGTHS = torch.tensor([3, 1, 4])
ROWS = int(LENGTHS.sum())


def spec(**changes: object) -> StreamSpec:
    options: dict[str, object] = {"name": "encoder", "width": WIDTH, "depth": COUNT - 1, "late": 0, "exit": "head"}
    return StreamSpec(**(options | {"encoder_decoder": False} | changes))


def make_block(preset: str, **options: object) -> SherlBlock:
    """In eval mode, so that nothing drops out; every parameter redrawn, running statistics too."""
    torch.manual_seed(0)
    size = {} if {"reduction", "bottleneck"} & options.keys() else {"reduction": 2}
    block = SherlBlock(SherlConfig(preset=preset, **size, **options), spec(), tuple(range(COUNT))).double().eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in (*block.named_parameters(), *block.named_buffers()):
            if tensor.is_floating_point():
                uniform = torch.rand(tensor.shape, generator=random, dtype=torch.float64)
                tensor.copy_(
                    0.03 + 0.07 * uniform if name == "gate" else uniform + 0.5 if "var" in name else uniform - 0.4
                )
    return block


def draw(seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(COUNT, ROWS, WIDTH, generator=random, dtype=torch.float64)


def normed(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + eps).sqrt() * weight + bias


def running(norm: torch.nn.BatchNorm1d, x: Tensor, place: slice = slice(None)) -> Tensor:
    """An evaluated batch norm, on some of its channels."""
    scaled = (x - norm.running_mean[place]) / (norm.running_var[place] + norm.eps).sqrt()
    return scaled * norm.weight[place] + norm.bias[place]


def feature(block: SherlBlock, form: str, k: int, x: Tensor) -> Tensor:
    """F_k of one row of one tap, as the table of forms says."""
    w, b = block.reduce_weight[k].T, block.reduce_bias[k, 0]
    d = len(b)
    if form == "relu_first":
        return w.mv(torch.clamp(x, min=0)) + b
    if form == "layer_norm":
        return normed(w.mv(x) + b, block.reduce_norm_weight[k, 0], block.reduce_norm_bias[k, 0], 1e-5)
    if form == "batch_norm":
        return running(block.reduce_norm, w.mv(x) + b, slice(k * d, (k + 1) * d))
    u = torch.clamp(w.mv(x) + b, min=0)
    w2, w3 = block.refine_weight[k][:, :d].T, block.refine_weight[k][:, d:].T
    return (w2.mv(u) + block.refine_bias[k, 0, :d] + u) * torch.sigmoid(w3.mv(u) + block.refine_bias[k, 0, d:])


def weighed(block: SherlBlock, shallow: list[Tensor], guide: Tensor, eps: float) -> Tensor:
    unit = [f / (f.square().sum().sqrt() + eps) for f in shallow]
    shares = []
    for k, f in enumerate(shallow):
        said = sum(torch.clamp(unit[k].dot(other), min=0) for other in unit)
        shares.append(torch.clamp(block.score.weight[0].dot(f * guide) + block.score.bias[0], min=0) / said)
    total = sum(shares) + eps
    return sum(share / total * f for share, f in zip(shares, shallow, strict=True))


def behind(block: SherlBlock, out: str, fused: Tensor) -> Tensor:
    linear = block.expand
    if out == "batch_norm":
        return torch.clamp(running(block.expand_norm, linear.weight.mv(fused) + linear.bias), min=0)
    rows = linear.weight.mv(torch.clamp(fused, min=0)) + linear.bias
    return normed(rows, block.expand_norm.weight, block.expand_norm.bias, 1e-12) if out == "layer_norm" else rows


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "clip4clip"])
def test_a_preset_equals_its_equations_row_by_row(preset: str) -> None:
    """The forms of T5, BERT in VSE, ResNeXt in VSE, MDETR and LXMERT."""
    block, form, taps = make_block(preset), PRESETS[preset], draw()
    rows = []
    for n in range(ROWS):
        features = [feature(block, form.projection, k, taps[k, n]) for k in range(COUNT)]
        summed = weighed(block, features[:-1], features[-1], form.eps)
        if form.guide == "deepest_mlp":
            first, _, second, norm = block.mix
            hidden = torch.clamp(first.weight.mv(summed) + first.bias, min=0)
            summed = normed(second.weight.mv(hidden) + second.bias, norm.weight, norm.bias, 1e-5)
        fused = summed + features[-1]
        rows.append(behind(block, form.out, fused) + torch.tanh(block.gate / 0.1) * taps[-1, n])
    torch.testing.assert_close(block(taps), torch.stack(rows), rtol=1e-10, atol=1e-10)


def test_clip4clip_pools_each_tap_by_its_agreement_with_the_guide() -> None:
    """Segment by segment: guide from the first row, spatial weights, the first row added, then the weights of taps; no
    gate, so that the guide's row is added as it is."""
    block, taps = make_block("clip4clip"), draw()
    fused, lengths = Sherl.fuse_stream(fusion_of(block), block, Packed(taps, LENGTHS, tuple(range(COUNT))))
    expected, start = [], 0
    for length in LENGTHS.tolist():
        rows = range(start, start + length)
        last = taps[-1, start]
        guide = block.guide.weight.mv(torch.clamp(last, min=0)) + block.guide.bias
        pooled = []
        for k in range(COUNT):
            features = [feature(block, "relu_first", k, taps[k, n]) for n in rows]
            scores = [
                torch.clamp(block.spatial_weight[k, 0].dot(guide * f) + block.spatial_bias[k, 0], min=0)
                for f in features
            ]
            total = sum(scores) + 1e-6
            pooled.append(sum(score / total * f for score, f in zip(scores, features, strict=True)) + features[0])
        summed = weighed(block, pooled, guide, 1e-6) + guide
        expected.append(behind(block, "linear", summed) + last)
        start += length
    torch.testing.assert_close(fused, torch.stack(expected), rtol=1e-10, atol=1e-10)
    assert lengths.tolist() == [1, 1, 1]
    assert block.gate is None


def fusion_of(block: SherlBlock) -> Sherl:
    fusion = Sherl.from_options({"preset": "clip4clip", "reduction": 2}, {"encoder": spec()}).eval()
    fusion.blocks["encoder"] = block
    return fusion


@pytest.mark.parametrize(
    ("preset", "width", "bottleneck", "eps", "gate"),
    [
        ("t5_glue", 768, 96, 1e-6, True),
        ("clip4clip", 512, 512, 1e-6, False),
        ("vse_text", 768, 512, 1e-8, True),
        ("vse_image", 2048, 512, 1e-8, True),
        ("mdetr", 256, 128, 1e-6, True),
        ("lxmert", 768, 384, 1e-6, True),
    ],
)
def test_behaviour_19_sizes_eps_and_gate_are_the_published_ones(
    preset: str, width: int, bottleneck: int, eps: float, gate: bool
) -> None:
    with torch.device("meta"):
        block = SherlBlock(SherlConfig(preset=preset), spec(width=width), tuple(range(COUNT)))
    assert block.reduce_weight.shape == (COUNT, width, bottleneck)
    assert block.eps == eps
    assert (block.gate is not None) == gate
    assert block.expand.weight.shape == (width, bottleneck)


def test_without_a_preset_a_stream_gets_the_form_it_always_had() -> None:
    for encoder_decoder, preset in ((True, "t5_glue"), (False, "lxmert")):
        made = []
        for options in ({}, {"preset": preset}):
            torch.manual_seed(3)
            config = SherlConfig(**options, taps="0,1,-1")
            made.append(SherlBlock(config, spec(encoder_decoder=encoder_decoder), (0, 1, 3)).state_dict())
        assert made[0].keys() == made[1].keys()
        assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_an_option_overrides_one_part_of_a_preset_and_leaves_the_others() -> None:
    form = SherlConfig(preset="vse_text", out="linear", gate=False).form(spec())
    assert (form.projection, form.out, form.gate, form.eps, form.bottleneck) == (
        "layer_norm",
        "linear",
        False,
        1e-8,
        512,
    )
    assert SherlConfig(preset="vse_text", reduction=4).form(spec()).bottleneck is None
    with pytest.raises(RecipeError, match=r"fusion\.bottleneck: .* give one"):
        SherlConfig(reduction=2, bottleneck=8).form(spec())


def test_weights_without_redundancy_are_shares_of_the_scores_alone() -> None:
    block = make_block("lxmert", redundancy="none")
    taps = draw()
    features = block.features(taps)
    scores = torch.relu(block.score(features[:-1] * features[-1]).squeeze(-1).T)
    torch.testing.assert_close(block.weights(taps), scores / (scores.sum(1, keepdim=True) + 1e-6))


def test_one_row_a_segment_cannot_enter_late_blocks() -> None:
    with pytest.raises(RecipeError, match=r"fusion\.guide: pooled .* late\.blocks: 0"):
        SherlBlock(SherlConfig(preset="clip4clip"), spec(exit="late", late=1), (0, 1, 2))


def test_what_a_form_promises_follows_its_parts() -> None:
    """Batch statistics and pooling read other rows; only pooling reads later ones."""
    promised = {
        preset: (fusion.tokenwise, fusion.causal, fusion.exit_norm)
        for preset in PRESETS
        for fusion in [Sherl.from_options({"preset": preset, "reduction": 2}, {"encoder": spec()})]
    }
    assert promised.pop("clip4clip") == (False, False, "none")
    assert promised.pop("vse_image") == (False, True, "new")
    assert set(promised.values()) == {(True, True, "new")}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_of_a_preset_has_a_gradient_and_starts_as_published(preset: str) -> None:
    torch.manual_seed(0)
    fusion = Sherl.from_options({"preset": preset, "reduction": 2, "dropout": 0.0}, {"encoder": spec(width=64)})
    taps = torch.randn(COUNT, ROWS, 64, generator=torch.Generator().manual_seed(2))
    fused = fusion({"encoder": Packed(taps, LENGTHS, tuple(range(COUNT)))})["encoder"].rows
    (fused * torch.randn(fused.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        # a batch norm takes any constant away that comes before it
        if preset != "vse_image" or not name.endswith(("reduce_bias", "expand.bias")):
            assert parameter.grad.abs().max() > 0, name
    block, init = fusion.blocks["encoder"], PRESETS[preset].init
    if isinstance(init, float):
        assert block.reduce_weight.std().item() == pytest.approx(init, rel=0.05)
        assert not block.reduce_bias.any()
    else:
        bound = 64**-0.5 if init == "default" else (6 / (64 + 32)) ** 0.5
        assert block.reduce_weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert block.reduce_bias.any()


def test_layer_weights_are_those_of_the_rows_of_the_last_forward() -> None:
    fusion = Sherl.from_options({}, {"encoder": spec()})
    taps = torch.randn(COUNT, ROWS, WIDTH, generator=torch.Generator().manual_seed(2))
    assert fusion.layer_weights() == {}
    fusion({"encoder": Packed(taps, LENGTHS, tuple(range(COUNT)))})
    found = fusion.layer_weights()["encoder"]
    assert not found.requires_grad
    torch.testing.assert_close(found, fusion.blocks["encoder"].weights(taps))
