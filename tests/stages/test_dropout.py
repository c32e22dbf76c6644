"""Dropout on cached taps against what dropout is."""

import pytest
import torch

from sherl_cache.stages.dropout import TapDropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_is_p_in_every_of_the_four_lanes_of_a_draw(p: float) -> None:
    torch.manual_seed(0)
    dropped = TapDropout(p)(torch.ones(400_000)) == 0
    for lane in range(4):
        assert dropped[lane::4].float().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / 100_000) ** 0.5)


def test_neighbours_are_dropped_independently_of_one_another() -> None:
    torch.manual_seed(0)
    dropped = (TapDropout(0.5)(torch.ones(400_000)) == 0).double()
    for step in (1, 2, 3, 4):
        both = torch.corrcoef(torch.stack([dropped[step:], dropped[:-step]]))[0, 1]
        assert abs(both.item()) < 5 / 400_000**0.5


def test_what_is_kept_is_scaled_so_that_the_mean_stays() -> None:
    torch.manual_seed(0)
    values = torch.rand(3, 7, 5, dtype=torch.float64) + 1
    found = TapDropout(0.25)(values)
    kept = found != 0
    assert 0 < kept.sum() < values.numel()
    torch.testing.assert_close(found[kept], values[kept] / 0.75, rtol=1e-12, atol=0)


def test_the_input_is_left_alone_and_the_same_seed_drops_the_same() -> None:
    values = torch.randn(11, 3)
    before = values.clone()
    torch.manual_seed(3)
    first = TapDropout(0.3)(values)
    torch.manual_seed(3)
    assert torch.equal(TapDropout(0.3)(values), first)
    assert torch.equal(values, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 350_000)])
def test_in_any_number_format_the_same_numbers_are_dropped_before_the_cast(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """Oracle: dropout of what was cast first. The second shape takes several parts, the last of them no full one."""
    values = torch.randn(shape).to(dtype)
    torch.manual_seed(3)
    expected = TapDropout(0.3)(values.float())
    torch.manual_seed(3)
    found = TapDropout(0.3)(values, torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert not torch.signbit(found[found == 0]).any()


def test_an_input_in_another_order_of_memory_is_dropped_by_its_own_order() -> None:
    values = torch.randn(6, 10)
    torch.manual_seed(3)
    expected = TapDropout(0.3)(values)
    torch.manual_seed(3)
    assert torch.equal(TapDropout(0.3)(values.T.contiguous().T), expected)


def test_in_evaluation_and_at_p_0_nothing_is_dropped() -> None:
    values = torch.randn(5, 3)
    assert torch.equal(TapDropout(0.5).eval()(values), values)
    assert torch.equal(TapDropout(0.0)(values), values)


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_a_share_beyond_the_levels_is_left_to_the_library(p: float) -> None:
    found = TapDropout(p)(torch.ones(1000))
    assert found.isfinite().all()
    assert (found == 0).all() == (p > 0.5)


def test_an_input_that_needs_a_gradient_gets_the_librarys_own() -> None:
    values = torch.ones(1000, requires_grad=True)
    found = TapDropout(0.5)(values)
    found.sum().backward()
    assert torch.equal(values.grad, found.detach())
