"""The official metrics of the GLUE tasks, over class numbers or scores.

Each follows SHERL's official T5 code (arXiv 2407.07523): an answer outside the label set is wrong, F1 takes such
an answer as the opposite of the truth, and a correlation that is not defined is 0.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from ..storage.errors import DataError

METRICS = ("accuracy", "matthews", "accuracy_f1", "pearson_spearman")
OUTSIDE = -1
"""Stands for an answer outside the label set; None is taken as this."""


def score(
    metric: str, predictions: Sequence[int | float | None], references: Sequence[int | float]
) -> dict[str, float]:
    """Values of a metric; the main one, which is the larger the better, comes first, under the metric's own name.

    `accuracy_f1` is the mean of accuracy and F1 of class 1, `pearson_spearman` the mean of the two correlations;
    both bring their parts.

    Raises DataError for an unknown metric, for no rows, and for lengths that differ.
    """
    if metric not in METRICS:
        raise DataError(f"no metric {metric!r}; there are {', '.join(METRICS)}")
    if len(predictions) != len(references) or not references:
        raise DataError(
            f"{metric} needs as many predictions as references, and at least one; "
            f"there are {len(predictions)} and {len(references)}"
        )
    given = np.array([OUTSIDE if value is None else value for value in predictions], dtype=np.float64)
    truth = np.array(references, dtype=np.float64)
    if metric == "pearson_spearman":
        pearson, spearman = _correlations(given, truth)
        return {metric: (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}
    accuracy = float(np.mean(given == truth))
    if metric == "accuracy_f1":
        f1 = _f1(given, truth)
        return {metric: (accuracy + f1) / 2, "accuracy": accuracy, "f1": f1}
    if metric == "matthews":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one class alone: the value is 0, as it should be
            return {metric: float(matthews_corrcoef(truth.astype(int), given.astype(int)))}
    return {metric: accuracy}


def _f1(given: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    valid = (given == 0) | (given == 1)
    return float(f1_score(truth, np.where(valid, given, 1 - truth), pos_label=1, zero_division=0))


def _correlations(given: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float]:
    """Pearson and Spearman; 0 where a side is constant or there is only one row."""
    if len(given) < 2 or np.ptp(given) == 0 or np.ptp(truth) == 0:
        return 0.0, 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant input: the value may be NaN, which becomes 0
        values = (stats.pearsonr(given, truth).statistic, stats.spearmanr(given, truth).statistic)
    pearson, spearman = (float(np.nan_to_num(value)) for value in values)
    return pearson, spearman


def recall_at_k(
    similarity: NDArray[np.floating[Any]],
    queries: Sequence[int] | NDArray[np.integer[Any]],
    candidates: Sequence[int] | NDArray[np.integer[Any]],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[int, float]:
    """Share of queries with a candidate of their own group among the k most similar, by k.

    similarity: [queries, candidates]; queries, candidates: group ids, so that an image may have several captions.
    Queries without a partner are left out. A candidate of another group that is as similar as the best partner comes
    before it: constant vectors find nothing. Raises DataError.
    """
    own, other = np.asarray(queries), np.asarray(candidates)
    return recall_of(places_ahead(similarity, own, other), ks)


def recall_of(ahead: NDArray[np.int64], ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Recall by k from what `places_ahead` gives, [queries]. Raises DataError where no query has a partner."""
    asked = ahead[ahead >= 0]
    if not len(asked):
        raise DataError("recall: no query has a partner among the candidates")
    return {k: float(np.mean(asked < k)) for k in ks}


def places_ahead(
    similarity: NDArray[np.floating[Any]], own: NDArray[np.integer[Any]], other: NDArray[np.integer[Any]]
) -> NDArray[np.int64]:
    """For each query, candidates of other groups that are at least as similar as its best partner, [queries]; -1 where
    it has no partner. Arguments as `recall_at_k`. Raises DataError.
    """
    if similarity.shape != (len(own), len(other)):
        raise DataError(
            f"recall needs a row a query and a column a candidate; there are {len(own)} queries and {len(other)} candidates, "
            f"and the similarities are {list(similarity.shape)}"
        )
    same = own[:, None] == other[None, :]
    best = np.where(same, similarity, -np.inf).max(1, initial=-np.inf, keepdims=True)
    ahead = (~(similarity < best) & ~same).sum(1)  # what is not a number comes before everything
    return np.where(same.any(1), ahead, -1)


def retrieval_scores(
    similarity: NDArray[np.floating[Any]],
    first: Sequence[int] | NDArray[np.integer[Any]],
    second: Sequence[int] | NDArray[np.integer[Any]],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """`recall`, the mean over both directions and every k, and each of its parts; as `score` gives them."""
    return both_directions(recall_at_k(similarity, first, second, ks), recall_at_k(similarity.T, second, first, ks))


def both_directions(forth: Mapping[int, float], back: Mapping[int, float]) -> dict[str, float]:
    """The scores of `retrieval_scores` from the recalls by k of either direction."""
    parts = {f"first_to_second_recall@{k}": value for k, value in forth.items()}
    parts |= {f"second_to_first_recall@{k}": value for k, value in back.items()}
    return {"recall": float(np.mean(list(parts.values()))), **parts}
