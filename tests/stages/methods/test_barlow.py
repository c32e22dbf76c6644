"""The redundancy term: what it is near zero for, what it ignores, and what it measures."""

import pytest
import torch
from torch import Tensor

from sherl_cache.stages.methods.contract import ObjectiveSpec, Outputs, Packed, Targets
from sherl_cache.stages.methods.objective.barlow import Barlow, cross_correlation
from sherl_cache.storage.errors import RecipeError

EXAMPLES, WIDTH = 64, 8


def packed(*taps: Tensor) -> Packed:
    """One row an example."""
    return Packed(torch.stack(taps), torch.ones(len(taps[0]), dtype=torch.int64), tuple(range(len(taps))))


def value(fused: Tensor, tap: Tensor | None = None, **options: object) -> Tensor:
    outputs = Outputs(
        head=None, fused={"encoder": packed(fused)}, taps={"encoder": packed(fused if tap is None else tap)}
    )
    loss = Barlow.from_options(options)(outputs, Targets())
    return loss.sum / loss.weight


def orthogonal(examples: int = EXAMPLES, width: int = WIDTH) -> Tensor:
    """Columns of mean zero, at right angles to each other."""
    random = torch.randn(examples, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(random - random.mean(0)).Q * examples**0.5


def noise(examples: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(examples, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_identical_views_with_orthogonal_columns_cost_nothing() -> None:
    for form in ("decorrelate", "align"):
        assert value(orthogonal(), form=form, subtract_floor=False).abs() < 1e-8


def test_a_duplicated_column_costs_all_of_the_off_diagonal() -> None:
    column = noise(EXAMPLES, 1)
    found = value(column.expand(-1, WIDTH), form="decorrelate", subtract_floor=False)
    assert found * WIDTH * (WIDTH - 1) == pytest.approx(56, rel=1e-4)


def test_positive_scales_shifts_and_a_joint_permutation_change_nothing() -> None:
    fused, tap = noise(EXAMPLES, WIDTH), noise(EXAMPLES, WIDTH, seed=2)
    order, scale = torch.randperm(WIDTH), torch.rand(WIDTH, dtype=torch.float64) + 0.5
    for form in ("decorrelate", "align"):
        plain = value(fused, tap, form=form)
        torch.testing.assert_close(value(fused * scale + 3, tap, form=form), plain, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(value(fused[:, order], tap[:, order], form=form), plain)


def test_a_sign_flip_of_one_channel_costs_four_in_align() -> None:
    view = orthogonal()
    flipped = view * torch.tensor([-1.0] + [1.0] * (WIDTH - 1))
    found = value(flipped, view, form="align", subtract_floor=False)
    assert found * WIDTH == pytest.approx(4, rel=1e-4)


def test_behaviour_21_the_off_diagonal_weighs_as_published_and_only_the_identity_is_free() -> None:
    """Oracle: the equation with 0.0051 off the diagonal, over biased correlations."""
    fused, tap = noise(EXAMPLES, WIDTH), noise(EXAMPLES, WIDTH, seed=2)
    correlation = torch.corrcoef(torch.cat([fused, tap], 1).T)[:WIDTH, WIDTH:]
    diagonal = correlation.diagonal()
    off = correlation.square().sum() - diagonal.square().sum()
    expected = ((1 - diagonal).square().sum() + 0.0051 * off) / WIDTH
    torch.testing.assert_close(value(fused, tap, form="align", subtract_floor=False), expected, rtol=1e-4, atol=1e-6)
    mixed = orthogonal() + 0.1 * orthogonal().roll(1, dims=1)
    assert value(mixed, orthogonal(), form="align", subtract_floor=False) > 1e-5


def test_correlations_equal_torch_corrcoef() -> None:
    fused, tap = noise(EXAMPLES, 5), noise(EXAMPLES, 4, seed=2)
    expected = torch.corrcoef(torch.cat([fused, tap], 1).T)[:5, 5:]
    torch.testing.assert_close(cross_correlation(fused, tap), expected, rtol=1e-4, atol=1e-5)


def test_independent_channels_are_at_the_floor_which_is_subtracted() -> None:
    """32 examples, 256 channels: about d (d - 1) / B of the off-diagonal is chance."""
    raw = torch.stack([value(noise(32, 256, seed), subtract_floor=False) for seed in range(20)]).mean()
    assert raw == pytest.approx(1 / 31, rel=0.02)
    assert torch.stack([value(noise(32, 256, seed)) for seed in range(20)]).mean().abs() < 1e-3


@pytest.mark.parametrize("form", ["decorrelate", "align"])
def test_gradients_equal_finite_differences_and_the_deepest_tap_has_none(form: str) -> None:
    fused, tap = noise(6, 3).requires_grad_(), noise(6, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: value(rows, tap.detach(), form=form, balance=0.5), fused)
    if form == "align":
        value(fused, tap, form=form).backward()
        assert tap.grad is None
        assert fused.grad.abs().max() > 0


def test_a_constant_channel_and_a_lone_example_are_finite() -> None:
    fused = noise(EXAMPLES, WIDTH)
    fused[:, 3] = 2.0
    for rows in (fused, fused[:1]):
        rows = rows.clone().requires_grad_()
        found = value(rows)
        found.backward()
        assert found.isfinite()
        assert rows.grad.isfinite().all()
    assert value(fused[:1]) == 0


def test_segments_are_pooled_and_streams_averaged() -> None:
    fused, lengths = noise(6, WIDTH), torch.tensor([2, 1, 3])
    first = Packed(fused.unsqueeze(0), lengths, (4,))
    second = packed(noise(5, WIDTH, seed=3))
    outputs = Outputs(head=None, fused={"one": first, "two": second}, taps={"one": first, "two": second})
    means = torch.stack([part.mean(0) for part in fused.split(lengths.tolist())])
    found = {stream: Barlow.from_options({"stream": stream})(outputs, Targets()) for stream in ("one", "two", None)}
    each = {stream: loss.sum / loss.weight for stream, loss in found.items()}
    torch.testing.assert_close(each["one"], value(means))
    torch.testing.assert_close(each[None], (each["one"] + each["two"]) / 2)


def test_a_stream_that_is_not_there_is_named() -> None:
    with pytest.raises(RecipeError, match="no stream 'decoder'; there are encoder"):
        Barlow.from_options({"stream": "decoder"}, ObjectiveSpec(streams=("encoder",)))
