"""Retrieval on the level of the contract: projection pair, symmetric InfoNCE, recall@k, against their definitions."""

import math

import pytest
import torch
from torch import Tensor, nn

from sherl_cache.stages.methods.contract import HeadSpec, Pair, Targets, pool_segments
from sherl_cache.stages.methods.head.projection_pair import ProjectionPair
from sherl_cache.stages.methods.objective.contrastive import Contrastive
from sherl_cache.stages.metrics import recall_at_k, retrieval_scores
from sherl_cache.storage.errors import DataError

SPEC = HeadSpec(width=6, second_width=4, kind="retrieval", classes=0, pooling="mean", initializer_range=0.02)


def vectors(count: int, seed: int) -> Tensor:
    random = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.normalize(random, dim=-1)


def loss_of(first: Tensor, second: Tensor, groups: tuple[list[int], list[int]], scale: float = 3.0) -> float:
    targets = Targets(groups=(torch.tensor(groups[0]), torch.tensor(groups[1])))
    loss = Contrastive.from_options({})(Pair(first, second, torch.tensor(scale, dtype=torch.float64)), targets)
    return float(loss.sum / loss.weight)


def test_with_one_caption_each_it_equals_the_cross_entropy_in_both_directions() -> None:
    first, second = vectors(7, 0), vectors(7, 1)
    logits, right = 3.0 * first @ second.T, torch.arange(7)
    both = nn.functional.cross_entropy(logits, right) + nn.functional.cross_entropy(logits.T, right)
    assert loss_of(first, second, (list(range(7)), list(range(7)))) == pytest.approx(float(both) / 2, rel=1e-12)


def test_other_captions_of_an_image_are_no_negatives() -> None:
    """Oracle: the definition, written out pair by pair."""
    first, second, images, captions = vectors(3, 0), vectors(6, 1), [0, 1, 2], [0, 0, 1, 1, 2, 2]
    scores = (3.0 * first @ second.T).tolist()

    def direction(of: list[list[float]], own: list[int], other: list[int]) -> float:
        each = []
        for row, group in zip(of, own, strict=True):
            against = [math.exp(s) for s, g in zip(row, other, strict=True) if g != group]
            right = [math.exp(s) for s, g in zip(row, other, strict=True) if g == group]
            each.append(sum(-math.log(s / (s + sum(against))) for s in right) / len(right))
        return sum(each) / len(each)

    columns = [list(column) for column in zip(*scores, strict=True)]
    expected = (direction(scores, images, captions) + direction(columns, captions, images)) / 2
    assert loss_of(first, second, (images, captions)) == pytest.approx(expected, rel=1e-12)


def test_an_anchor_without_a_partner_adds_nothing_but_is_a_negative_of_others() -> None:
    first, second = vectors(3, 0), vectors(3, 1)
    without = loss_of(first[:2], second[:2], ([0, 1], [0, 1]))
    lone = loss_of(first, second, ([0, 1, 2], [0, 1, 3]))
    assert lone > without
    unknown = loss_of(first, second, ([0, 1, -1], [0, 1, -1]))
    assert unknown == pytest.approx(without, rel=1e-12)


def test_gradients_equal_finite_differences() -> None:
    targets = Targets(groups=(torch.tensor([0, 1, -1]), torch.tensor([0, 1, 1, 2])))
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    inputs = (vectors(3, 0).requires_grad_(), vectors(4, 1).requires_grad_(), scale)
    assert torch.autograd.gradcheck(lambda a, b, s: Contrastive.from_options({})(Pair(a, b, s), targets).sum, inputs)


def test_a_projection_pair_projects_pooled_rows_of_its_own_width_to_length_one() -> None:
    torch.manual_seed(0)
    head = ProjectionPair.from_options({"width": 5, "temperature": 0.1}, SPEC)
    rows, lengths = (torch.randn(5, 6), torch.randn(4, 4)), (torch.tensor([2, 3]), torch.tensor([1, 1, 2]))
    pair = head(rows, lengths)
    for found, layer, of_stream, counts in zip(
        (pair.first, pair.second), (head.first, head.second), rows, lengths, strict=True
    ):
        expected = layer(pool_segments(of_stream, counts, "mean"))
        torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))
    assert pair.scale.item() == pytest.approx(10, rel=1e-6)
    with torch.no_grad():
        head.log_scale.fill_(20)
    assert head(rows, lengths).scale.item() == 100
    assert not ProjectionPair.from_options({"learn_temperature": False}, SPEC).log_scale.requires_grad


def test_training_the_pair_finds_the_partners() -> None:
    """Two views of the same eight things through fixed random maps, three noisy captions each."""
    torch.manual_seed(0)
    things = torch.randn(8, 3)
    images = things @ torch.randn(3, 6)
    captions = (things @ torch.randn(3, 4)).repeat_interleave(3, 0) + 0.05 * torch.randn(24, 4)
    groups = (torch.arange(8), torch.arange(8).repeat_interleave(3))
    head, objective = ProjectionPair.from_options({"width": 4}, SPEC), Contrastive.from_options({})
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)

    def scores() -> dict[str, float]:
        with torch.no_grad():
            pair = head((images, captions), (torch.ones(8, dtype=torch.int64), torch.ones(24, dtype=torch.int64)))
        return retrieval_scores((pair.first @ pair.second.T).numpy(), *(group.numpy() for group in groups))

    before = scores()
    for _ in range(150):
        optimizer.zero_grad()
        pair = head((images, captions), (torch.ones(8, dtype=torch.int64), torch.ones(24, dtype=torch.int64)))
        loss = objective(pair, Targets(groups=groups))
        (loss.sum / loss.weight).backward()
        optimizer.step()
    after = scores()
    assert after["recall"] > before["recall"] + 0.2
    assert after["first_to_second_recall@1"] == 1.0


def test_recall_counts_queries_with_one_of_their_own_among_the_first_k() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.8, 0.1, 0.7, 0.9], [0.0, 0.3, 0.2, 0.1]]).numpy()
    queries, candidates = [0, 1, 2], [0, 0, 1, 2]
    found = recall_at_k(similarity, queries, candidates, (1, 2, 3, 4))
    assert found == {1: 1 / 3, 2: 1 / 3, 3: 1.0, 4: 1.0}


def test_several_captions_are_each_a_hit_and_each_a_query() -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.5], [0.6, 0.2, 0.4]]).numpy()
    found = retrieval_scores(similarity, [0, 1], [0, 0, 1], (1,))
    assert found["first_to_second_recall@1"] == 0.5  # image 0 finds its second caption, image 1 finds one of image 0
    assert found["second_to_first_recall@1"] == pytest.approx(1 / 3)  # only the second caption is nearest to its own
    assert found["recall"] == pytest.approx((0.5 + 1 / 3) / 2)


def test_equal_similarities_are_no_hits_and_queries_without_partner_are_left_out() -> None:
    assert recall_at_k(torch.zeros(2, 3).numpy(), [0, 1], [0, 1, 2], (1, 3)) == {1: 0.0, 3: 1.0}
    assert recall_at_k(torch.eye(3).numpy(), [0, 1, 7], [0, 1, 2], (1,)) == {1: 1.0}
    with pytest.raises(DataError, match="no query has a partner"):
        recall_at_k(torch.eye(2).numpy(), [0, 1], [2, 3])
    with pytest.raises(DataError, match="2 queries and 3 candidates"):
        recall_at_k(torch.zeros(3, 2).numpy(), [0, 1], [0, 1, 2])
