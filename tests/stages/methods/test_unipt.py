"""UniPT against its equations, token by token, and what its parts promise."""

import pytest
import torch
from torch import Tensor

from sherl_cache.stages.methods.contract import StreamSpec
from sherl_cache.stages.methods.fusion.unipt import UniPT, UniPTBlock, UniPTConfig
from sherl_cache.storage.errors import RecipeError

LENGTHS = torch.tensor([3, 1, 4])
COUNT, WIDTH = 4, 12


def make(**options: object) -> UniPTBlock:
    spec = StreamSpec(name="encoder", width=WIDTH, depth=3, late=0, exit="head", encoder_decoder=False)
    block = UniPTBlock(UniPTConfig(**options), spec, tuple(range(COUNT))).double()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64) * 0.5)
    return block


def draw(seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(COUNT, int(LENGTHS.sum()), WIDTH, generator=random, dtype=torch.float64)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * weight + bias


def written_out(block: UniPTBlock, taps: Tensor, project: str, activation: bool, eps: float) -> Tensor:
    rows, start = [], 0
    for length in LENGTHS.tolist():
        features = [
            [
                layer_norm(
                    block.reduce_weight[k].T.mv(taps[k, n]) + block.reduce_bias[k, 0],
                    block.reduce_norm_weight[k, 0],
                    block.reduce_norm_bias[k, 0],
                )
                for n in range(start, start + length)
            ]
            for k in range(COUNT)
        ]
        anchor, shallow = features[-1], features[:-1]
        mean = [sum(feature) / length for feature in features]
        scores = torch.stack([block.score.weight[0].dot(mean[-1] * m) + block.score.bias[0] for m in mean[:-1]])
        confidence = scores.exp() / scores.exp().sum()
        for i in range(length):
            mixed = 0
            for share, target in zip(confidence, shallow, strict=True):
                meets = [torch.clamp(anchor[i].dot(key), min=0) for key in target]
                total = sum(meets) + eps
                mixed = mixed + share * (sum(m / total * t for m, t in zip(meets, target, strict=True)) + target[i])
            norm = block.project[-1]
            if project == "mlp":
                first, _, second, _ = block.project
                mixed = second.weight.mv(torch.clamp(first.weight.mv(mixed) + first.bias, min=0)) + second.bias
            else:
                mixed = block.project[0].weight.mv(mixed) + block.project[0].bias
            fused = anchor[i] + layer_norm(mixed, norm.weight, norm.bias)
            fused = torch.clamp(fused, min=0) if activation else fused
            rows.append(block.expand.weight.mv(fused) + block.expand.bias)
        start += length
    return torch.stack(rows)


@pytest.mark.parametrize(("project", "activation", "eps"), [("linear", True, 1e-8), ("mlp", False, 1e-6)])
def test_unipt_equals_the_equations_written_out_by_value_and_gradient(
    project: str, activation: bool, eps: float
) -> None:
    block = make(project=project, activation=activation, eps=eps)
    taps = draw().requires_grad_()
    found, lengths = block(taps, LENGTHS)
    expected = written_out(block, taps, project, activation, eps)
    assert torch.equal(lengths, LENGTHS)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    direction = draw(seed=5)[0]
    leaves = [taps, *block.parameters()]
    got = torch.autograd.grad((found * direction).sum(), leaves)
    want = torch.autograd.grad((expected * direction).sum(), leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_behaviour_20_rows_of_interactions_sum_to_their_share_and_confidences_to_one() -> None:
    """With the identity added a row sums to S / (S + eps) + 1, where S is the sum of its positive scores."""
    block = make()
    anchors, targets = draw(1)[:, :5, :6], draw(2)[:, :5, :6]
    total = torch.relu(anchors @ targets.transpose(1, 2)).sum(-1)
    rows = (block.interaction(anchors, targets) + torch.eye(5)).sum(-1)
    torch.testing.assert_close(rows, total / (total + 1e-8) + 1)
    confidence = block.confidence(block.features(draw()), LENGTHS)
    torch.testing.assert_close(confidence.sum(0), torch.ones(3).double())
    assert confidence.shape == (COUNT - 1, 3)


def test_the_anchor_must_be_read_and_something_beside_it() -> None:
    specs = {"encoder": StreamSpec(name="encoder", width=8, depth=3, late=0, exit="head", encoder_decoder=False)}
    for taps in ("-1", "0,1"):
        with pytest.raises(RecipeError, match=r"fusion\.taps \(encoder\): read the deepest tap, h03"):
            UniPT.reads({"taps": taps}, specs)
    with pytest.raises(RecipeError, match=r"fusion\.reduction: 9 leaves no bottleneck"):
        UniPT.from_options({"reduction": 9}, specs)
