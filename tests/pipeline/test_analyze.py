"""`analyze` against NumPy over what zarr-python reads; and what is written of it."""

import json
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from cli import call
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
from store_builders import Case

from sherl_cache.pipeline.analysis.document import read_analysis
from sherl_cache.pipeline.analysis.moments import Moments, Shape
from sherl_cache.pipeline.analysis.similarity import centre, effective_rank, linear_cka
from sherl_cache.pipeline.analysis.work import plan_work
from sherl_cache.storage import MemoryFiles, Store, collect_garbage, decode, find_garbage

SCHEMAS = json.loads((Path(__file__).parents[2] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]
ENCODINGS = ["float64", "float32", "float16", "bfloat16", "int8", "float32+bitround:12+zstd:1"]


class Layers(Case):
    """Channel 5 of tap 2 is far larger than the others; tap 3 is tap 2 turned and shifted, and tap 1 of the decoder never
    varies.
    """

    def values(self, split: str, stream: str, tap: int) -> NDArray[np.float32]:
        values = super().values(split, stream, 2 if tap == 3 else tap)
        if stream == "decoder":
            return np.full_like(values, 0.5)
        if tap in (2, 3):
            values[:, 5] *= 30
        if tap == 3:
            turn, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((8, 8)))
            values = (values @ turn.astype(np.float32)) + np.float32(2)
        return values


def rows_by_zarr(store: Store, split: str, stream: str) -> NDArray[np.float64]:
    """[K, rows, D] of every row that holds a value, read by zarr-python at the places that the example table names."""
    table, plan = store.examples(split), store.stream_plan(split, stream)
    offsets = table.column(f"{stream}_offset").combine_chunks().flatten().to_numpy()
    lengths = table.column(f"{stream}_length").combine_chunks().flatten().to_numpy()
    rows = np.concatenate([np.arange(o, o + n) for o, n in zip(offsets, lengths, strict=True)])
    calibration = store.calibration(split, stream)
    found = []
    for tap in plan.taps:
        stored = zarr.open_array(str(store.root), path=f"{split}/{stream}/h{tap:02d}", mode="r")[:][rows]
        found.append(decode(stored, store.encoding, None if calibration is None else calibration.tap(tap)))
    return np.stack(found).astype(np.float64)


def cka_of_grams(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """From Gram matrices, term by term as in Song et al. 2012, equation 5."""

    def hsic(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        k, g, n = x @ x.T, y @ y.T, len(x)
        np.fill_diagonal(k, 0)
        np.fill_diagonal(g, 0)
        ones = np.ones(n)
        terms = np.trace(k @ g) + (ones @ k @ ones) * (ones @ g @ ones) / ((n - 1) * (n - 2))
        return float(terms - 2 / (n - 2) * (ones @ k @ g @ ones)) / (n * (n - 3))

    return hsic(one, other) / np.sqrt(hsic(one, one) * hsic(other, other))


def rank_of_singular_values(rows: NDArray[np.float64]) -> float:
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_figures_equal_numpy_over_what_zarr_reads(tmp_path: Path, encoding: str) -> None:
    store = Layers(encoding=encoding).build(tmp_path / "cache")
    result = call("analyze", "--store", tmp_path / "cache", "--memory", "64MiB", "--threads", 2)
    jsonschema.validate(result, SCHEMAS["analyze"])
    assert result["store_digest"] == store.digest
    folder = tmp_path / "cache" / "sherl" / "analysis" / "train"
    channels = pq.read_table(folder / "channels.parquet").to_pandas()
    pairs = pq.read_table(folder / "pairs.parquet").to_pylist()
    for stream in ("encoder", "decoder"):
        found, taps = result["streams"][stream], store.stream_plan("train", stream).taps
        values = rows_by_zarr(store, "train", stream)
        assert np.isfinite(values).all()
        assert found["rows"] == found["sampled_rows"] == values.shape[1] == store.stream_plan("train", stream).tokens
        norms = np.linalg.norm(values, axis=2)
        names = ("norm_mean", "norm_std", "norm_min", "norm_max")
        expected = np.stack([norms.mean(1), norms.std(1), norms.min(1), norms.max(1)])
        np.testing.assert_allclose(
            [[tap[name] for tap in found["taps"]] for name in names], expected, rtol=1e-6, atol=1e-6
        )
        directions = values / norms[:, :, None]
        np.testing.assert_allclose(
            found["cosine"], np.einsum("itd,jtd->ij", directions, directions) / norms.shape[1], atol=1e-6
        )
        for index, tap in enumerate(taps):
            mine = channels[(channels["stream"] == stream) & (channels["tap"] == tap)]
            rms = np.sqrt((values[index] ** 2).mean(0))
            np.testing.assert_allclose(mine["rms"], rms, rtol=1e-6)
            np.testing.assert_allclose(mine["mean"], values[index].mean(0), rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(mine["std"], values[index].std(0), rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(mine["largest"], np.abs(values[index]).max(0), rtol=1e-6)
            outliers = np.flatnonzero(rms > 6 * np.median(rms)).tolist()
            assert found["taps"][index]["outliers"] == len(outliers)
            assert [shown["channel"] for shown in found["taps"][index]["largest_outliers"]] == outliers
            assert mine["channel"][mine["outlier"]].tolist() == outliers
    encoder = result["streams"]["encoder"]
    values = rows_by_zarr(store, "train", "encoder")
    expected = np.array(
        [
            [cka_of_grams(a, b) for b in values - values.mean(1, keepdims=True)]
            for a in values - values.mean(1, keepdims=True)
        ]
    )
    np.testing.assert_allclose(encoder["cka"], expected, atol=1e-5)
    np.testing.assert_allclose(
        [tap["effective_rank"] for tap in encoder["taps"]], [rank_of_singular_values(x) for x in values], rtol=1e-5
    )
    assert encoder["taps"][1]["outliers"] == 1
    assert [pair["cka"] for pair in pairs if pair["stream"] == "encoder"] == pytest.approx(
        np.ravel(encoder["cka"]).tolist()
    )
    if encoding != "int8":  # which keeps a little noise where nothing varies
        decoder = result["streams"]["decoder"]
        assert decoder["cka"] == [[None]]
        assert decoder["taps"][0]["effective_rank"] is None
        assert encoder["cka"][1][2] == pytest.approx(1, abs=1e-3)  # turning and shifting change no CKA


def test_a_sample_is_drawn_without_replacement_and_the_same_again(tmp_path: Path) -> None:
    store = Case().build(tmp_path / "cache")
    one, two = (plan_work(store, "train", "encoder", 1 << 30, 1, 50).sample for _ in range(2))
    rows = np.concatenate([np.stack([o, r], 1) for o, r in zip(one.owners, one.rows, strict=True)])
    assert sum(one.counts) == len(np.unique(rows, axis=0)) == 50
    assert all((a == b).all() for a, b in zip(one.rows, two.rows, strict=True))


def test_a_sample_says_what_the_whole_does() -> None:
    """The estimator has no bias: over many small samples its HSIC averages to that of all rows."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 40))
    y = np.concatenate([x[:, :5], rng.standard_normal((4000, 35))], axis=1)
    both = np.stack([x, y])
    centre(both)
    whole = linear_cka(both)[0, 1]
    assert whole == pytest.approx(5 / 40, abs=0.01)
    sample = both[:, rng.choice(4000, 200, replace=False)].copy()
    centre(sample)
    assert linear_cka(sample)[0, 1] == pytest.approx(whole, abs=0.03)
    plain = np.linalg.norm(sample[0].T @ sample[1]) ** 2
    plain /= np.linalg.norm(sample[0].T @ sample[0]) * np.linalg.norm(sample[1].T @ sample[1])
    assert plain > whole + 0.1  # what the plain estimate would have said


def test_effective_rank_counts_directions() -> None:
    rng = np.random.default_rng(0)
    for count in (20, 400):
        turned = rng.standard_normal((count, 3)) @ np.linalg.qr(rng.standard_normal((50, 3)))[0].T
        turned -= turned.mean(0)
        assert effective_rank(turned) == pytest.approx(rank_of_singular_values(turned), rel=1e-9)
        assert 2 < effective_rank(turned) < 3.0001


def test_rows_of_zeros_have_no_direction_and_spoil_nothing() -> None:
    moments = Moments(Shape(2, 3))
    rows = np.array([[0, 0, 0], [3, 4, 0]], np.float32)
    moments.add([rows, rows * 2], np.empty((2, 6), np.float32))
    np.testing.assert_allclose(moments.cosine, np.ones((2, 2)), atol=1e-7)
    assert (-moments.least_norm).tolist() == [0, 0]
    assert moments.largest_norm.tolist() == [5, 10]


def test_what_is_written_is_no_part_of_the_store(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    store = Case().build(root)
    call("analyze", "--store", root)
    first = {path.name: path.read_bytes() for path in (root / "sherl" / "analysis" / "train").iterdir()}
    call("analyze", "--store", root, "--split", "train")
    assert {path.name: path.read_bytes() for path in (root / "sherl" / "analysis" / "train").iterdir()} == first
    assert store.verify(deep=True) == []
    assert find_garbage(root) == collect_garbage(root) == []
    found = read_analysis(Store.open(root), "train")
    assert found is not None
    assert found.store_digest == store.digest
    assert read_analysis(store, "validation") is None


def test_a_store_elsewhere_needs_a_folder(tmp_path: Path) -> None:
    Case().build(tmp_path / "cache")
    MemoryFiles.named("analyzed").load(tmp_path / "cache")
    assert "--out" in call("analyze", "--store", "memory://analyzed", code=2)
    there = call("analyze", "--store", "memory://analyzed", "--out", tmp_path / "out")
    here = call("analyze", "--store", tmp_path / "cache")
    assert there["streams"] == here["streams"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "analysis.json",
        "channels.parquet",
        "pairs.parquet",
        "taps.parquet",
    ]
