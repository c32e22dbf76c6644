"""int8 rows against float16: bytes, and what is left of each tap, beside one scale for a whole array.

Real states: all-MiniLM-L6-v2 (builtin/minilm) over builtin/reviews, which are made-up sentences. Calibration sees some
examples, errors are measured on others. What the rounding costs in accuracy is measured by
`python -m benchmarks.accuracy --encoding int8`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sherl_cache.storage import calibrate, decode, encode, encoding

from .row import Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from .row import Scale

MOST_BYTES = 0.51
SAMPLE_ROWS = 4096  # as extract takes


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    seen, unseen = _states(scale.of(4000, 150), scale.seed, folder)
    calibration = calibrate({number: values[:SAMPLE_ROWS] for number, values in seen.items()})
    width, stored_width = calibration.width, calibration.tap(0).stored_width
    share = stored_width / (2 * width)
    yield Row(
        "int8: bytes of a row against float16",
        f"at most {MOST_BYTES}x",
        f"{share:.4f}x ({stored_width} of {2 * width} bytes, {calibration.outliers} of {width} channels at 16 bits)",
        share <= MOST_BYTES,
        {"row_bytes": stored_width, "outliers": calibration.outliers, "sample_rows": calibration.rows},
    )

    found: dict[int, dict[str, float]] = {}
    for number, exact in unseen.items():
        channels = calibration.tap(number)
        stored, _ = encode(exact, encoding("int8"), channels)
        kept = decode(stored, encoding("int8"), channels)
        step = np.abs(exact).max() / 127
        coarse = np.rint(exact / step) * step
        found[number] = {
            "relative": _relative(exact, kept),
            "cosine": _cosine(exact, kept),
            "one_scale_relative": _relative(exact, coarse),
            "one_scale_cosine": _cosine(exact, coarse),
        }
    worst = max(found, key=lambda number: found[number]["relative"])
    gain = min(errors["one_scale_relative"] / errors["relative"] for errors in found.values())
    yield Row(
        f"int8: error of {len(found)} taps",
        "at most half of one scale's",
        f"worst h{worst:02d} {found[worst]['relative']:.4f} of its spread, with one scale "
        f"{found[worst]['one_scale_relative']:.4f}; all {gain:.1f}x smaller or more",
        gain >= 2,
        {"taps": found},
    )
    yield Row(
        f"int8: cosine of {len(found)} taps",
        "above one scale's",
        f"at least {min(errors['cosine'] for errors in found.values()):.6f}, with one scale "
        f"{min(errors['one_scale_cosine'] for errors in found.values()):.6f}",
        all(errors["cosine"] > errors["one_scale_cosine"] for errors in found.values()),
    )


def _states(examples: int, seed: int, folder: Path) -> list[dict[int, NDArray[np.float32]]]:
    """Rows [n, width] of every tap over one half of the training examples, and over the other."""
    import torch

    from sherl_cache.stages.front import Front
    from sherl_cache.stages.inputs import forward_batches, input_lengths, token_batch
    from sherl_cache.stages.prepare import ExtractSettings, prepare

    settings = ExtractSettings(model="builtin/minilm", data="builtin/reviews", limit=examples, seed=seed)
    prepared = prepare(settings, folder, torch.device("cpu"))
    front = Front(prepared.loaded, prepared.taps)
    table = prepared.rows("train", examples)
    halves: list[list[NDArray[np.float32]]] = [[], []]
    for number, chosen in enumerate(forward_batches(input_lengths(table), 1024)):
        taps = front(token_batch(table, chosen))["encoder"].taps
        halves[number % 2].append(np.stack([tap.float().numpy() for tap in taps]))
    return [dict(zip(prepared.taps["encoder"], np.concatenate(half, axis=1), strict=True)) for half in halves]


def _relative(exact: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact - exact.mean(axis=0)))


def _cosine(exact: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Mean over rows, of states less the mean state: what tells one row from another."""
    mean = exact.mean(axis=0, dtype=np.float64)
    one, other = exact - mean, found - mean
    return float(np.mean((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)))
