"""Res-Tuning's bypass, Side-Tuning and Head2Toe against what their papers say of them."""

import math

import pytest
import torch
from fusion_cases import LENGTHS, PROBE, WIDTH, make_fusion, make_taps
from torch import Tensor, nn

from sherl_cache.stages.methods.contract import CachedBatch, Packed, Targets
from sherl_cache.stages.methods.fusion.head2toe import Head2Toe, Head2ToeConfig, feature_scores
from sherl_cache.stages.methods.fusion.res_tuning import ResTuning
from sherl_cache.stages.methods.fusion.side import Side

TAPS = make_taps("res_tuning", "probe")["encoder"].taps


def test_res_tuning_equals_the_equations_written_out() -> None:
    fusion = make_fusion("res_tuning", "probe", {"bottleneck": 3})
    block = fusion.blocks["encoder"]

    def tuner(place: int, x: Tensor) -> Tensor:
        hidden = block.down_weight[place].T.mv(x) + block.down_bias[place, 0]
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        return x + block.up_weight[place].T.mv(hidden) + block.up_bias[place, 0]

    found = block(TAPS)
    for n in range(int(LENGTHS.sum())):
        path = TAPS[0, n]
        for step in range(4):
            path = tuner(step, TAPS[step + 1, n]) + tuner(4 + step, path)
        torch.testing.assert_close(found[n], path, rtol=1e-4, atol=1e-4)


def test_res_tuning_check_3_with_nothing_added_the_bypass_is_the_plain_sum_of_states() -> None:
    """And on the first tokens alone it is what it is there in company; no gradient is asked of the taps."""
    fusion = make_fusion("res_tuning", "probe")
    firsts = LENGTHS.cumsum(0) - LENGTHS
    torch.testing.assert_close(fusion.blocks["encoder"](TAPS[:, firsts]), fusion.blocks["encoder"](TAPS)[firsts])
    with torch.no_grad():
        for name, parameter in fusion.named_parameters():
            if ".up_" in name:
                parameter.zero_()
    torch.testing.assert_close(fusion.blocks["encoder"](TAPS), TAPS.sum(0))
    assert not TAPS.requires_grad


def test_res_tuning_can_start_with_its_last_tuners_handing_on() -> None:
    fusion = ResTuning.from_options({"zero_init_last": True}, PROBE)
    block = fusion.blocks["encoder"]
    assert not block.up_weight[[3, 7]].any()
    assert block.up_weight[[0, 1, 2, 4, 5, 6]].any()


def test_side_starts_as_the_mean_of_both_branches_and_ends_as_the_base() -> None:
    fusion = make_fusion("side", "probe")
    taps = make_taps("side", "probe")["encoder"].taps
    block = fusion.blocks["encoder"]
    assert Side.from_options({}, PROBE).blocks["encoder"].alpha.item() == 0
    with torch.no_grad():
        block.alpha.zero_()
        torch.testing.assert_close(block(taps, LENGTHS)[0], (taps[1] + block.side(taps[0], LENGTHS)) / 2)
        block.alpha.fill_(40.0)
        assert torch.equal(block(taps, LENGTHS)[0], taps[1])


@pytest.mark.parametrize(("kernel", "tokenwise"), [(1, True), (2, False), (3, False)])
def test_side_equals_its_convolutions_written_out(kernel: int, tokenwise: bool) -> None:
    """Token by token, with zeros where a segment has no token; on a causal stream no later token is read."""
    for model in ("probe", "causal probe"):
        fusion = make_fusion("side", model, {"layers": 2, "hidden": 5, "kernel": kernel})
        block = fusion.blocks["encoder"]
        rows = make_taps("side", model)["encoder"].taps[0]
        behind = kernel - 1 if model == "causal probe" else (kernel - 1) // 2
        expected, start = [], 0

        def convolved(layer: nn.Conv1d, states: list[Tensor], place: int, behind: int = behind) -> Tensor:
            total = layer.bias
            for step in range(kernel):
                at = place + step - behind
                if 0 <= at < len(states):
                    total = total + layer.weight[:, :, step].mv(states[at])
            return total

        for length in LENGTHS.tolist():
            segment = list(rows[start : start + length])
            first, second = block.convolutions
            hidden = [nn.functional.gelu(convolved(first, segment, place)) for place in range(length)]
            expected += [convolved(second, hidden, place) for place in range(length)]
            start += length
        torch.testing.assert_close(block.side(rows, LENGTHS), torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_head2toe_features_have_length_one_and_rows_of_zeros_stay_finite() -> None:
    fusion = make_fusion("head2toe", "probe")
    taps = make_taps("head2toe", "probe")["encoder"].taps.clone()
    taps[2] = 0
    taps.requires_grad_()
    fused = fusion({"encoder": Packed(taps, LENGTHS, (0, 1, 2, 3, 4))})["encoder"]
    chunks = fused.rows.split(WIDTH, dim=1)
    for tap, chunk in enumerate(chunks):
        torch.testing.assert_close(chunk.norm(dim=1), torch.full((3,), 0.0 if tap == 2 else 1.0))
    fused.rows.square().sum().backward()
    assert taps.grad.isfinite().all()


class Examples:
    """Cached training batches: 3 classes; one feature says the class, one is constant, one example has no label."""

    classes, seed = 3, 0

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self.gold = torch.randint(0, 3, (90,), generator=random)
        self.taps = 0.3 * torch.randn(5, 90, WIDTH, generator=random)
        self.taps[3, :, 7] = self.gold.float() - 1
        self.taps[2, :, 4] = 1.0
        self.gold[5] = -1

    def batches(self) -> list[CachedBatch]:
        parts = [slice(first, first + 30) for first in (0, 30, 60)]
        ones = torch.ones(30, dtype=torch.int64)
        return [
            CachedBatch({"encoder": Packed(self.taps[:, part], ones, (0, 1, 2, 3, 4))}, Targets(gold=self.gold[part]))
            for part in parts
        ]


def test_head2toe_chooses_the_feature_that_says_the_label_and_no_constant_one() -> None:
    examples = Examples()
    fusion = Head2Toe.from_options({"keep": 1 / (5 * WIDTH), "steps": 200, "penalty": 1e-3}, PROBE)
    fusion.prepare(examples)
    assert fusion.blocks["encoder"].kept.tolist() == [3 * WIDTH + 7]
    tenth = Head2Toe.from_options({"keep": 0.1, "steps": 200, "penalty": 1e-3}, PROBE)
    tenth.prepare(examples)
    kept = tenth.blocks["encoder"].kept.tolist()
    assert len(kept) == tenth.widths["encoder"] == 8
    assert 3 * WIDTH + 7 in kept
    assert 2 * WIDTH + 4 not in kept
    rows = tenth(examples.batches()[0].inputs)["encoder"].rows
    every = tenth.blocks["encoder"].features(examples.taps[:, :30], torch.ones(30, dtype=torch.int64))
    assert torch.equal(rows, every[:, kept])


def test_head2toe_of_all_features_has_nothing_to_choose() -> None:
    assert not Head2Toe.prepares({"keep": 1.0}, PROBE)
    assert Head2Toe.prepares({}, PROBE)
    fusion = make_fusion("head2toe", "probe")
    assert fusion.blocks["encoder"].kept.tolist() == list(range(5 * WIDTH))


def test_head2toe_scores_do_not_depend_on_the_names_of_classes() -> None:
    examples = Examples()
    known = examples.gold >= 0
    features, gold = examples.taps[3][known], examples.gold[known]
    config = Head2ToeConfig(steps=50)
    scores = feature_scores(features, gold, 3, config, seed=0)
    renamed = feature_scores(features, torch.tensor([2, 0, 1])[gold], 3, config, seed=0)
    torch.testing.assert_close(renamed, scores, rtol=1e-4, atol=1e-6)
    without = feature_scores(features, gold, 3, Head2ToeConfig(steps=50, penalty=0.0), seed=0)
    strong = feature_scores(features, gold, 3, Head2ToeConfig(steps=50, penalty=1.0), seed=0)
    assert strong.sum() < 0.1 * without.sum()


def test_head2toe_scores_features_of_a_number_too() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(200, 6, generator=random)
    scores = feature_scores(features, 2 * features[:, 4], 0, Head2ToeConfig(steps=200), seed=0)
    assert scores.argmax().item() == 4
