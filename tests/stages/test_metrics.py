"""Metrics against their formulas, written out without numpy's or scipy's own functions for them."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sherl_cache.stages.metrics import METRICS, score
from sherl_cache.storage.errors import DataError

LABELS = st.lists(st.tuples(st.sampled_from([0, 1, 2, None]), st.sampled_from([0, 1])), min_size=1, max_size=30)
SCORES = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=20)


def split(rows: Sequence[tuple[int | None, int]]) -> tuple[list[int | None], list[int]]:
    return [given_ for given_, _ in rows], [truth for _, truth in rows]


@settings(deadline=None)
@given(LABELS)
def test_accuracy_is_the_share_of_equal_labels(rows: list[tuple[int | None, int]]) -> None:
    assert score("accuracy", *split(rows)) == {"accuracy": pytest.approx(sum(g == t for g, t in rows) / len(rows))}


@settings(deadline=None)
@given(LABELS)
def test_f1_takes_an_answer_outside_the_set_as_the_opposite(rows: list[tuple[int | None, int]]) -> None:
    counted = [(g if g in (0, 1) else 1 - t, t) for g, t in rows]
    hits, wrong = counted.count((1, 1)), counted.count((1, 0)) + counted.count((0, 1))
    f1 = 2 * hits / (2 * hits + wrong) if hits else 0.0
    accuracy = sum(g == t for g, t in rows) / len(rows)
    found = score("accuracy_f1", *split(rows))
    assert found == pytest.approx({"accuracy_f1": (accuracy + f1) / 2, "accuracy": accuracy, "f1": f1})
    assert next(iter(found)) == "accuracy_f1"


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 1]), st.sampled_from([0, 1])), min_size=1, max_size=30))
def test_matthews_is_the_correlation_of_a_two_by_two_table(rows: list[tuple[int, int]]) -> None:
    tp, tn, fp, fn = (rows.count(cell) for cell in ((1, 1), (0, 0), (1, 0), (0, 1)))
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    expected = (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0
    assert score("matthews", *split(rows)) == {"matthews": pytest.approx(expected, abs=1e-12)}


def test_matthews_counts_an_answer_outside_the_set_as_wrong() -> None:
    assert score("matthews", [0, 1, None], [0, 1, 1])["matthews"] < score("matthews", [0, 1, 1], [0, 1, 1])["matthews"]


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    both = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
    return both / math.sqrt(spread) if spread > 0 else 0.0


def ranks(values: Sequence[float]) -> list[float]:
    return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]


@settings(deadline=None)
@given(SCORES)
def test_correlations_follow_their_formulas_and_are_0_where_undefined(rows: list[tuple[int, int]]) -> None:
    a, b = [float(x) for x, _ in rows], [float(y) for _, y in rows]
    constant = len(set(a)) == 1 or len(set(b)) == 1
    expected = (0.0, 0.0) if constant else (pearson(a, b), pearson(ranks(a), ranks(b)))
    found = score("pearson_spearman", a, b)
    assert (found["pearson"], found["spearman"]) == pytest.approx(expected, abs=1e-9)
    assert found["pearson_spearman"] == pytest.approx(sum(expected) / 2, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_no_rows_and_unequal_lengths_are_refused(metric: str) -> None:
    for predictions, references in (([], []), ([1], [1, 0])):
        with pytest.raises(DataError, match="as many predictions as references"):
            score(metric, predictions, references)


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(DataError, match="no metric 'f1'"):
        score("f1", [1], [1])
