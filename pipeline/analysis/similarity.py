"""What second moments say of a sample of rows: similarity of taps by linear CKA, and their effective rank. NumPy only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_ROWS: Final = 4
"""The estimator of CKA divides by n - 3."""


def centre(sample: NDArray[Any]) -> None:
    """Take the mean over rows away from each tap, in place: [K, n, D]."""
    for tap in sample:
        tap -= tap.mean(axis=0, dtype=np.float64).astype(tap.dtype)


def linear_cka(sample: NDArray[Any]) -> NDArray[np.float64]:
    """[K, K] linear CKA between taps of a centred sample [K, n, D], NaN where a tap does not vary.

    CKA is HSIC(i, j) / sqrt(HSIC(i, i) HSIC(j, j)) (Kornblith et al. 2019, arXiv 1905.00414), and HSIC is estimated without
    bias (Song et al. 2012, equation 5): the plain one grows with width over rows. With X, Y centred, the Gram matrices'
    off-diagonal sums are -|x_t|^2, which leaves

        |X'Y|_F^2 - n/(n-2) sum_t |x_t|^2 |y_t|^2 + sum_t |x_t|^2 sum_t |y_t|^2 / ((n-1)(n-2)),     over n (n-3)

    Raises ValueError for fewer than 4 rows.
    """
    count = sample.shape[1]
    if count < LEAST_ROWS:
        raise ValueError(f"{count} rows: CKA needs at least {LEAST_ROWS}")
    squares = np.stack([np.einsum("td,td->t", tap, tap, dtype=np.float64) for tap in sample])  # [K, n]
    totals = squares.sum(axis=1)
    products = np.empty((len(sample), len(sample)))
    for first, one in enumerate(sample):
        for second, other in enumerate(sample[: first + 1]):
            crossed = one.T @ other
            products[first, second] = products[second, first] = np.einsum("ij,ij->", crossed, crossed, dtype=np.float64)
    hsic = products - count / (count - 2) * (squares @ squares.T)
    hsic += np.outer(totals, totals) / ((count - 1) * (count - 2))
    own = np.diagonal(hsic)
    varies = own > 1e-12 * np.maximum(np.diagonal(products), np.finfo(np.float64).tiny)
    scale = np.sqrt(np.where(varies, own, np.nan))
    return np.asarray(hsic / np.outer(scale, scale))


def effective_rank(rows: NDArray[Any]) -> float:
    """exp of the entropy of the covariance's eigenvalues, as shares of their sum, of centred rows [n, D].

    Roy and Vetterli 2007 (The effective rank: a measure of effective dimensionality), of the covariance matrix: 1 where all
    variance lies in one direction, D where it is the same in all. NaN where nothing varies.
    """
    wide = rows.astype(np.float64)
    gram = wide.T @ wide if len(rows) >= rows.shape[1] else wide @ wide.T
    del wide
    values = np.maximum(np.linalg.eigvalsh(gram), 0)
    total = values.sum()
    if not total > 0:
        return float("nan")
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))
