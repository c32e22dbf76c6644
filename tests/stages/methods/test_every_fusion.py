"""What every fusion promises, run over every file of the axis: a new one is tested by existing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from fusion_cases import LENGTHS, OPTIONS, WIDTH, fused_of, make_fusion, make_taps, models_of, redraw

from sherl_cache.stages import plugins
from sherl_cache.stages.methods.contract import Packed, StreamwiseFusion
from sherl_cache.storage.errors import RecipeError

FUSIONS = plugins.names("fusion")
CASES = [(name, model) for name in FUSIONS for model in models_of(name)]
every_fusion = pytest.mark.parametrize("name", FUSIONS)
every_case = pytest.mark.parametrize(("name", "model"), CASES)


def total(values: dict[str, Packed], seed: int = 4) -> torch.Tensor:
    """A loss that is not symmetric in anything."""
    random = torch.Generator().manual_seed(seed)
    return sum((p.rows * torch.randn(p.rows.shape, generator=random)).sum() for p in values.values())


@every_case
def test_a_fusion_reads_ascending_taps_that_exist(name: str, model: str) -> None:
    specs = models_of(name)[model]
    reads = plugins.find("fusion", name).reads({}, specs)
    assert reads.keys() == specs.keys()
    for stream, taps in reads.items():
        assert taps == tuple(sorted(set(taps)))
        assert 0 <= taps[0] <= taps[-1] <= specs[stream].deepest


@every_case
def test_fused_rows_have_the_width_lengths_and_depth_that_are_promised(name: str, model: str) -> None:
    """Every stream goes on but one that feeds another without late blocks."""
    fusion, specs = make_fusion(name, model, {}), models_of(name)[model]
    fused = fusion(make_taps(name, model, {}))
    late = any(spec.exit == "late" for spec in specs.values())
    assert fused.keys() == {stream for stream, spec in specs.items() if late or spec.exit == "head"}
    for stream, packed in fused.items():
        assert packed.rows.shape == (int(packed.lengths.sum()), fusion.widths[stream])
        assert packed.rows.isfinite().all()
        assert len(packed.lengths) == len(LENGTHS)
        assert packed.depths == (specs[stream].deepest,)
        if specs[stream].exit != "head":
            assert fusion.widths[stream] == WIDTH
            assert torch.equal(packed.lengths, LENGTHS)


@every_case
def test_gradients_reach_every_parameter_that_trains_and_every_tap(name: str, model: str) -> None:
    fusion, taps = make_fusion(name, model), make_taps(name, model)
    for packed in taps.values():
        packed.taps.requires_grad_()
    total(fusion(taps)).backward()
    for key, parameter in fusion.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        assert parameter.grad is None or parameter.grad.abs().max() > 0, key
    for packed in taps.values():
        assert (packed.taps.grad.abs().amax((1, 2)) > 0).all()


@every_case
def test_a_fusion_is_rebuilt_from_its_state(name: str, model: str) -> None:
    fusion, taps = make_fusion(name, model), make_taps(name, model)
    other = make_fusion(name, model, seed=7)
    other.load_state_dict(fusion.state_dict())
    for stream, packed in fusion(taps).items():
        assert torch.equal(other(taps)[stream].rows, packed.rows)


@every_case
def test_a_tokenwise_fusion_ignores_other_tokens(name: str, model: str) -> None:
    fusion, taps = make_fusion(name, model), make_taps(name, model)
    if not fusion.tokenwise:
        pytest.skip("mixes tokens, and says so")
    before = {stream: packed.rows.clone() for stream, packed in fusion(taps).items()}
    for packed in taps.values():
        packed.taps[:, 3:] = 100 * torch.randn(packed.taps[:, 3:].shape)
    for stream, packed in fusion(taps).items():
        torch.testing.assert_close(packed.rows[:3], before[stream][:3])
        assert not torch.allclose(packed.rows[3:], before[stream][3:])


@every_case
def test_segments_do_not_see_one_another_nor_padding(name: str, model: str) -> None:
    """Oracle: each segment alone, where nothing is padded."""
    fusion, taps = make_fusion(name, model).eval(), make_taps(name, model)
    together = fusion(taps)
    for number in range(len(LENGTHS)):
        alone = fusion(make_taps(name, model, segment=number))
        for stream, packed in alone.items():
            expected = torch.split(together[stream].rows, together[stream].lengths.tolist())[number]
            torch.testing.assert_close(packed.rows, expected, rtol=1e-4, atol=1e-5)


@every_case
def test_a_causal_fusion_keeps_to_the_past_on_causal_streams(name: str, model: str) -> None:
    fusion, specs = make_fusion(name, model), models_of(name)[model]
    stream = next(reversed(specs))
    if not fusion.causal or not specs[stream].causal:
        pytest.skip("sees the future, and says so, or is on a stream that may")
    taps = make_taps(name, model)
    before = fusion(taps)[stream].rows.clone()
    taps[stream].taps[:, 2] += 100  # the last token of the first segment
    after = fusion(taps)[stream].rows
    assert torch.equal(after[:2], before[:2])
    assert torch.equal(after[3:], before[3:])
    assert not torch.allclose(after[2], before[2])


@every_fusion
def test_a_streamwise_fusion_does_not_read_the_trainables_of_another_stream(name: str) -> None:
    if "encoder-decoder" not in models_of(name):
        pytest.skip("reads one stream")
    fusion, taps = make_fusion(name, "encoder-decoder"), make_taps(name, "encoder-decoder")
    if not isinstance(fusion, StreamwiseFusion):
        pytest.skip("couples streams, and says so")
    before = fusion(taps)["decoder"].rows
    redraw(fusion.blocks["encoder"], seed=9)
    assert torch.equal(fusion(taps)["decoder"].rows, before)


@every_case
def test_a_stream_does_not_depend_on_those_after_it(name: str, model: str) -> None:
    """In generation an encoder is fused before there is a decoder."""
    fusion, taps = make_fusion(name, model), make_taps(name, model)
    together = fusion(taps)
    first = next(iter(taps))
    for stream, packed in fusion({first: taps[first]}).items():
        assert torch.equal(packed.rows, together[stream].rows)


@every_fusion
def test_a_fusion_runs_in_bfloat16_near_its_float32_values(name: str) -> None:
    model = next(iter(models_of(name)))
    fusion, taps = make_fusion(name, model), make_taps(name, model)
    exact = fused_of(fusion, taps)
    half = {key: replace(packed, taps=packed.taps.bfloat16()) for key, packed in taps.items()}
    rows = fused_of(fusion.bfloat16(), half)
    assert rows.dtype == torch.bfloat16
    assert (rows.float() - exact).norm() < 0.05 * exact.norm()


@every_fusion
def test_taps_other_than_those_it_reads_are_refused(name: str) -> None:
    model = next(iter(models_of(name)))
    fusion, taps = make_fusion(name, model), make_taps(name, model)
    moved = {key: replace(packed, depths=tuple(d + 1 for d in packed.depths)) for key, packed in taps.items()}
    with pytest.raises(ValueError, match="reads taps"):
        fusion(moved)


@every_fusion
def test_late_blocks_after_a_fusion_that_ends_at_the_head_are_refused(name: str) -> None:
    method = plugins.find("fusion", name)
    specs = {"encoder": replace(models_of(name)["probe"]["encoder"], late=1, exit="late")}
    if method.enters_late:
        method.from_options({}, specs)
        return
    with pytest.raises(RecipeError, match=f"fusion.name: {name} ends at the head; set late.blocks: 0"):
        method.from_options({}, specs)


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def sherl(K: int, D: int, d: int) -> int:
    return K * (linear(D, d) + 2 * linear(d, d)) + linear(d, 1) + linear(d, D) + 1


def ladder(K: int, D: int, d: int) -> int:
    """A post-norm block of inner width d (heads times their width) and feed-forward f = 2 d, with biases."""
    block = 4 * linear(d, d) + linear(d, 2 * d) + linear(2 * d, d) + 2 * 2 * d
    return K * linear(D, d) + (K - 1) * (1 + block) + 2 * d + linear(d, D)


WANTED: dict[str, tuple[dict[str, Any], Callable[..., int]]] = {
    "last": ({}, lambda K, D: 0),
    "weighted_sum": ({}, lambda K, D: K + 1),
    "sherl": ({"reduction": 2}, lambda K, D: sherl(K, D, D // 2)),
    "unipt": (
        {"reduction": 2},
        lambda K, D: K * (linear(D, D // 2) + D) + linear(D // 2, 1) + linear(D // 2, D // 2) + D + linear(D // 2, D),
    ),
    "res_tuning": ({"bottleneck": 3}, lambda K, D: 2 * (K - 1) * (2 * D * 3 + 3 + D)),
    "side": ({"layers": 2, "hidden": 5, "kernel": 3}, lambda K, D: 3 * D * 5 + 5 + 3 * 5 * D + D + 1),
    "vqt": ({"queries": 3}, lambda K, D: (K - 1) * 3 * D),
    "head2toe": ({}, lambda K, D: 0),
    "ladder": ({"reduction": 4}, lambda K, D: ladder(K, D, D // 4)),
}


@every_fusion
def test_the_parameter_count_equals_the_published_formula(name: str) -> None:
    """K taps of width D in one stream, the last of an encoder alone."""
    options, formula = WANTED[name]
    fusion = make_fusion(name, "probe", options)
    count = sum(parameter.numel() for parameter in fusion.parameters() if parameter.requires_grad)
    taps = plugins.find("fusion", name).reads(options, models_of(name)["probe"])["encoder"]
    assert count == formula(len(taps), WIDTH)


@every_fusion
def test_options_of_the_cases_are_options(name: str) -> None:
    plugins.find("fusion", name).Config(**OPTIONS.get(name, {}))
