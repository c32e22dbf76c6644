"""Heads against padded pooling, objectives against their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sherl_cache.stages.methods.contract import UNLABELLED, HeadSpec, ObjectiveSpec, Packed, Targets, pool_segments
from sherl_cache.stages.methods.head.classifier import Classifier
from sherl_cache.stages.methods.head.language_model import LanguageModel
from sherl_cache.stages.methods.head.regression import Regression
from sherl_cache.stages.methods.objective import classification, regression, token_cross_entropy
from sherl_cache.storage.errors import RecipeError


def spec(kind: str, **changes: object) -> HeadSpec:
    fields = {"width": 8, "kind": kind, "classes": 4, "pooling": "mean", "initializer_range": 0.02}
    return HeadSpec(**{**fields, **changes})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**31))
def test_pooling_of_packed_rows_equals_pooling_of_each_segment(lengths: list[int], seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(lengths), 5, generator=random, dtype=torch.float64)
    segments = rows.split(lengths)
    mean = pool_segments(rows, torch.tensor(lengths), "mean")
    torch.testing.assert_close(mean, torch.stack([segment.mean(0) for segment in segments]))
    first = pool_segments(rows, torch.tensor(lengths), "cls")
    assert torch.equal(first, torch.stack([segment[0] for segment in segments]))


def test_a_long_mean_in_bfloat16_keeps_its_value() -> None:
    rows = torch.full((4096, 2), 1.0, dtype=torch.bfloat16)
    assert pool_segments(rows, torch.tensor([4096]), "mean").tolist() == [[1.0, 1.0]]


def test_pooling_is_the_backbones_unless_the_recipe_says_otherwise() -> None:
    rows, lengths = torch.randn(5, 8), torch.tensor([3, 2])
    for options, pooling, chosen in (({}, "cls", "cls"), ({"pooling": "mean"}, "cls", "mean")):
        head = Classifier.from_options(options, spec("classification", pooling=pooling))
        expected = head.linear(pool_segments(rows, lengths, chosen))
        assert torch.equal(head(rows, lengths), expected)


@pytest.mark.parametrize(("head_class", "kind"), [(Classifier, "classification"), (Regression, "regression")])
def test_dropout_of_a_head_is_off_in_eval_mode_and_follows_the_seed_in_train_mode(
    head_class: type[Classifier] | type[Regression], kind: str
) -> None:
    head = head_class.from_options({"dropout": 0.5}, spec(kind))
    rows, lengths = torch.randn(5, 8), torch.tensor([3, 2])

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return head(rows, lengths)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    head.eval()
    assert torch.equal(drawn(1), drawn(2))


def test_new_heads_have_the_backbones_spread_and_no_bias() -> None:
    torch.manual_seed(0)
    head = Classifier.from_options({}, spec("classification", width=512, classes=64, initializer_range=0.05))
    assert head.linear.weight.std().item() == pytest.approx(0.05, rel=0.02)
    assert not head.linear.bias.any()


def test_the_language_model_head_neither_owns_nor_saves_the_projection() -> None:
    projection = nn.Linear(8, 30, bias=False)
    head = LanguageModel.from_options({}, spec("classification", lm=projection))
    rows = torch.randn(5, 8)
    assert torch.equal(head(rows[[1, 3]], torch.tensor([1, 1])), projection(rows[[1, 3]]))
    assert not list(head.parameters())
    assert not head.state_dict()


def test_the_language_model_head_needs_a_projection() -> None:
    with pytest.raises(RecipeError, match="pretrained output projection"):
        LanguageModel.from_options({}, spec("regression"))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classification_equals_the_definition_of_cross_entropy(smoothing: float) -> None:
    logits = torch.randn(4, 3, dtype=torch.float64)
    gold = [2, 0, -1, 1]
    objective = classification.Classification.from_options({"label_smoothing": smoothing})
    loss = objective(logits, Targets(gold=torch.tensor(gold)))
    expected = 0.0
    for row, label in zip(logits, gold, strict=True):
        log_shares = (row.exp() / row.exp().sum()).log()
        if label >= 0:
            expected -= ((1 - smoothing) * log_shares[label] + smoothing * log_shares.mean()).item()
    assert loss.sum.item() == pytest.approx(expected, rel=1e-12)
    assert loss.weight.item() == 3


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_classes_equal_the_weighted_mean_that_torch_takes(smoothing: float) -> None:
    logits, gold, weights = torch.randn(5, 3, dtype=torch.float64), torch.tensor([2, 0, -1, 1, 0]), (0.5, 2.0, 1.25)
    options = {"label_smoothing": smoothing, "class_weights": weights}
    loss = classification.Classification.from_options(options, ObjectiveSpec(classes=3))(logits, Targets(gold=gold))
    mean = nn.functional.cross_entropy(
        logits, gold, torch.tensor(weights, dtype=torch.float64), ignore_index=-1, label_smoothing=smoothing
    )
    torch.testing.assert_close(loss.sum / loss.weight, mean)


def test_balanced_weights_leave_out_a_class_that_never_comes() -> None:
    spec = ObjectiveSpec(classes=3, label_counts=(6, 0, 2))
    objective = classification.Classification.from_options({"class_weights": "balanced"}, spec)
    torch.testing.assert_close(objective.class_weights, torch.tensor([8 / 12, 0, 2.0]))
    for weights in ([1.0, 1.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0]):
        with pytest.raises(RecipeError, match=r"objective\.class_weights: \d weights for 3 classes"):
            classification.Classification.from_options({"class_weights": weights}, spec)
    with pytest.raises(RecipeError, match="balanced needs labelled training examples"):
        classification.Classification.from_options({"class_weights": "balanced"})


def test_huber_equals_its_definition() -> None:
    objective = regression.Regression.from_options({"loss": "huber", "delta": 0.5})
    loss = objective(torch.tensor([0.25, 100.0, 5.0]), Targets(score=torch.tensor([0.5, torch.nan, 3.0])))
    assert loss.sum.item() == 0.5 * 0.25**2 + 0.5 * (2.0 - 0.5 * 0.5)
    assert loss.weight.item() == 2


def test_smoothed_token_cross_entropy_equals_its_definition() -> None:
    logits, tokens = torch.randn(4, 9, dtype=torch.float64), torch.tensor([3, UNLABELLED, 8, 0])
    loss = token_cross_entropy.TokenCrossEntropy.from_options({"label_smoothing": 0.3})(logits, Targets(tokens=tokens))
    shares = logits.log_softmax(1)
    expected = -sum(0.7 * shares[row, tokens[row]] + 0.3 * shares[row].mean() for row in (0, 2, 3))
    torch.testing.assert_close(loss.sum, expected)
    assert loss.weight == 3


def test_a_classifier_with_a_hidden_layer_is_tanh_between_two_linear_maps() -> None:
    torch.manual_seed(0)
    head = Classifier.from_options({"hidden": 5}, spec("classification"))
    rows, lengths = torch.randn(5, 8), torch.tensor([3, 2])
    pooled = pool_segments(rows, lengths, "mean")
    torch.testing.assert_close(head(rows, lengths), head.linear(torch.tanh(head.hidden(pooled))))
    assert sum(parameter.numel() for parameter in head.parameters()) == 8 * 5 + 5 + 5 * 4 + 4


def test_regression_equals_the_sum_of_squared_errors() -> None:
    targets = Targets(score=torch.tensor([1.0, torch.nan, 3.0]))
    loss = regression.Regression.from_options({})(torch.tensor([0.5, 100.0, 5.0]), targets)
    assert loss.sum.item() == 0.25 + 4.0
    assert loss.weight.item() == 2


def test_token_cross_entropy_equals_the_mean_that_transformers_takes_times_its_tokens() -> None:
    logits = torch.randn(6, 9, dtype=torch.float64)
    tokens = torch.tensor([3, UNLABELLED, 8, 0, UNLABELLED, 8])
    loss = token_cross_entropy.TokenCrossEntropy.from_options({})(logits, Targets(tokens=tokens))
    mean = nn.functional.cross_entropy(logits, tokens)  # T5ForConditionalGeneration's loss
    torch.testing.assert_close(loss.sum / loss.weight, mean)


def test_packed_taps_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="2 depths"):
        Packed(torch.zeros(1, 4, 8), torch.tensor([4]), (0, 1))
    with pytest.raises(ValueError, match="2 taps"):
        _ = Packed(torch.zeros(2, 4, 8), torch.tensor([4]), (0, 1)).rows
