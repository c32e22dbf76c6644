"""What methods add to the loss for their weights' sake: the group lasso by which Head2Toe's features fall out."""

import numpy as np
import pytest
import torch

from sherl_cache.stages.methods.contract import Head, HeadSpec, group_lasso
from sherl_cache.stages.plugins import find

SPEC = HeadSpec(width=6, kind="classification", classes=3, pooling="mean", initializer_range=0.5)


def head_of(name: str, **options: object) -> Head:
    spec = (
        HeadSpec(width=6, kind=name, classes=0, pooling="mean", initializer_range=0.5) if name == "regression" else SPEC
    )
    return find("head", name).from_options(options, spec)


@pytest.mark.parametrize(
    ("name", "layer"), [("classifier", "linear"), ("classifier", "hidden"), ("regression", "linear")]
)
def test_group_lasso_of_a_head_equals_numpys(name: str, layer: str) -> None:
    """Oracle: lambda times the sum over features of the norm of their weights, and its derivative, by hand."""
    torch.manual_seed(0)
    head = head_of(name, group_lasso=0.3, **({"hidden": 4} if layer == "hidden" else {})).double()
    weight = head.get_submodule(layer).weight
    values = weight.detach().numpy()
    norms = np.sqrt((values**2).sum(0) + 1e-12)  # with the floor that keeps the root's gradient finite
    (penalty,) = head.penalties().values()
    assert float(penalty.detach()) == pytest.approx(0.3 * norms.sum(), rel=1e-12)
    penalty.backward()
    np.testing.assert_allclose(weight.grad.numpy(), 0.3 * values / norms, rtol=1e-9)
    assert all(other.grad is None for other in head.parameters() if other is not weight)


def test_features_without_weight_get_a_finite_gradient_and_there_is_no_penalty_by_default() -> None:
    weight = torch.zeros(3, 6, requires_grad=True)
    group_lasso(weight).backward()
    assert torch.equal(weight.grad, torch.zeros(3, 6))
    assert head_of("classifier").penalties() == {}
    assert head_of("regression").penalties() == {}


def test_training_with_the_lasso_keeps_the_weights_of_the_feature_that_says_the_label() -> None:
    """Head2Toe: noise falls out, a feature that is the label does not. Oracle: the same training without."""
    random = torch.Generator().manual_seed(0)
    gold = torch.randint(0, 3, (120,), generator=random)
    rows = torch.randn(120, 6, generator=random)
    rows[:, 4] = gold.float() - 1
    norms = {}
    for factor in (0.0, 0.05):
        torch.manual_seed(0)
        head = head_of("classifier", group_lasso=factor)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(head(rows, torch.ones(120, dtype=torch.int64)), gold)
            sum(head.penalties().values(), start=loss).backward()
            optimizer.step()
        norms[factor] = head.linear.weight.detach().norm(dim=0)
    noise = [0, 1, 2, 3, 5]
    assert norms[0.05].argmax() == 4
    assert norms[0.05][noise].max() < 0.1 * norms[0.0][noise].max()
    assert norms[0.05][noise].max() < 0.05 * norms[0.05][4]
