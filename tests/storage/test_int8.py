"""int8 rows: against the bound of rounding, against per-tensor int8, and decoded by a stranger from attributes alone."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sherl_cache.storage import (
    Calibration,
    ChannelCalibration,
    Store,
    StoreWriter,
    calibrate,
    decode,
    encode,
    encoding,
)
from sherl_cache.storage.documents import Plan, base, parse
from sherl_cache.storage.errors import InvalidInput, NonFinite, StoreCorrupt, StoreNotUsable, StoreStale

INT8 = encoding("int8")


def states(rows: int, width: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Rows as transformers have them: channels of unlike spread and offset, and in one row of twenty (a separator, a
    first token) two channels that are hundreds of times larger.
    """
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, width)) * rng.lognormal(0, 1, width) + rng.normal(0, 3, width)
    values[::20, 3] += 400
    values[::20, width // 2] -= 900
    return values.astype(np.float32)


def per_tensor(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The usual int8: one scale for everything."""
    step = np.abs(values).max() / 127
    return np.rint(values / step).astype(np.float32) * step


def channel_error(values: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Root mean square error, in units of each channel's spread over the rows without huge values."""
    plain = np.arange(len(values)) % 20 != 0
    return float(np.sqrt(np.mean(((found - values) / values[plain].std(axis=0)) ** 2)))


@pytest.mark.parametrize("width", [384, 768])
def test_rows_with_outliers_keep_what_per_tensor_int8_loses(width: int) -> None:
    values = states(2000, width)
    calibration = calibrate({4: values[:1000]})
    tap = calibration.tap(4)
    stored, misfit = encode(values, INT8, tap)
    assert misfit.rows == ()
    assert stored.nbytes <= 0.51 * 2 * values.size
    assert {3, width // 2} <= set(tap.outliers.tolist())
    assert channel_error(values, decode(stored, INT8, tap)) < 0.012
    assert channel_error(values, per_tensor(values)) > 1  # larger than the channels' own spread


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 4), st.floats(-6, 6))
@settings(max_examples=60, deadline=None)
def test_every_value_is_within_half_a_step(seed: int, width: int, outliers: int, power: float) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.standard_cauchy((9, width)).clip(-1e3, 1e3) * 10.0**power).astype(np.float32)
    tap = ChannelCalibration(
        shift=rng.normal(0, 10.0**power, width).astype(np.float32),
        scale=(rng.lognormal(0, 1, width) * 10.0**power).astype(np.float32),
        outliers=np.sort(rng.permutation(width)[: min(outliers, width - 1)]),
    )
    stored, misfit = encode(values, INT8, tap)
    assert misfit.rows == ()
    assert stored.shape == (9, tap.stored_width)
    normalised = np.abs((values.astype(np.float64) - tap.shift) / tap.scale)
    largest = normalised[:, tap.ordinary].max(axis=1, keepdims=True, initial=0)
    step = np.maximum(largest / 127 * (1 + 2**-10), 2.0**-24)  # float16 rounds the step
    bound = np.broadcast_to(step * 0.5 + largest * 2**-10, values.shape).copy()
    bound[:, tap.outliers] = np.maximum(normalised[:, tap.outliers] * 2**-11, 2.0**-25)
    rounding = 1e-6 * (normalised + np.abs(tap.shift / tap.scale))
    error = np.abs(decode(stored, INT8, tap).astype(np.float64) - values) / tap.scale
    assert (error <= bound + rounding + 1e-6).all()


def test_ordinary_channels_and_outliers_come_back_in_their_places() -> None:
    values = np.arange(1, 11, dtype=np.float32)[None].repeat(3, axis=0)
    for outliers in ([], [0], [9], [0, 1, 9], [4, 5], list(range(9))):
        tap = ChannelCalibration(np.zeros(10, np.float32), np.ones(10, np.float32), np.asarray(outliers, np.int64))
        found = decode(encode(values, INT8, tap)[0], INT8, tap)
        np.testing.assert_allclose(found, values, atol=0.05)


@pytest.mark.parametrize("outliers", [[], [1]])
def test_what_does_not_fit_is_counted_by_kind_and_the_rest_is_kept(outliers: list[int]) -> None:
    tap = ChannelCalibration(np.zeros(3, np.float32), np.ones(3, np.float32), np.asarray(outliers, np.int64))
    values = np.ones((6, 3), np.float32)
    values[1, 0], values[1, 1], values[4, 2], values[5, 1] = np.nan, np.inf, -np.inf, 1e8
    stored, misfit = encode(values, INT8, tap)
    assert misfit == (1, 2, 1, (1, 4, 5))
    np.testing.assert_allclose(decode(stored, INT8, tap)[[0, 2, 3]], np.ones((3, 3)), atol=1e-3)


def test_values_need_the_calibration_of_their_width() -> None:
    tap = calibrate({0: states(50, 8)}).tap(0)
    with pytest.raises(InvalidInput, match="needs the calibration"):
        encode(np.ones((1, 8), np.float32), INT8)
    with pytest.raises(InvalidInput, match="8 channels"):
        encode(np.ones((1, 9), np.float32), INT8, tap)
    with pytest.raises(InvalidInput, match="bytes"):
        decode(np.ones((1, 9), np.int8), INT8, tap)


def test_outliers_are_as_few_as_reach_the_target() -> None:
    plain = np.random.default_rng(0).standard_normal((1000, 768)).astype(np.float32)
    assert calibrate({0: plain}).outliers == 0
    hard = plain.copy()
    hard[::3, 5] *= 300
    both = calibrate({0: plain, 7: hard})
    assert both.outliers == 1
    assert both.tap(7).outliers.tolist() == [5]
    assert all(tap.error <= both.target for tap in both.taps)
    bound = calibrate({0: plain}, target=0.0)
    assert bound.outliers == 13  # 755 + 2 + 26 bytes, 0.51 of 1,536
    assert calibrate({0: plain[:, :384]}, target=0.0).outliers == 5
    assert calibrate({0: plain[:, :16]}, target=0.0).outliers == 0


def test_a_channel_that_never_moves_is_kept() -> None:
    values = states(100, 16)
    values[:, 2] = 7.25
    tap = calibrate({0: values}).tap(0)
    assert (decode(encode(values, INT8, tap)[0], INT8, tap)[:, 2] == 7.25).all()
    still = np.full((10, 4), 3.0, np.float32)
    tap = calibrate({0: still}).tap(0)
    np.testing.assert_array_equal(decode(encode(still, INT8, tap)[0], INT8, tap), still)


def test_a_sample_without_rows_still_makes_a_calibration() -> None:
    tap = calibrate({0: np.empty((0, 8), np.float32)}).tap(0)
    values = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
    np.testing.assert_allclose(decode(encode(values, INT8, tap)[0], INT8, tap), values, atol=0.01)


def test_a_row_of_equal_values_has_one_form() -> None:
    """Positive and negative zeros are the same value, and the same bytes."""
    tap = ChannelCalibration(np.zeros(4, np.float32), np.ones(4, np.float32), np.asarray([], np.int64))
    zeros = np.asarray([[0.0, 0.0, 0.0, 0.0], [-0.0, -0.0, -0.0, -0.0], [0.0, -0.0, 0.0, -0.0]], np.float32)
    assert not encode(zeros, INT8, tap)[0].any()


@pytest.mark.parametrize("power", [-3, -5, -6, -7, -8, -12])
def test_rows_too_near_to_the_shift_for_their_scale_err_by_less_than_float16_can_say(power: int) -> None:
    """Where the scale is rounded far down, values stop at the last step; none changes its sign."""
    tap = ChannelCalibration(np.zeros(5, np.float32), np.ones(5, np.float32), np.asarray([], np.int64))
    values = np.outer(np.linspace(1, 2, 40), [1.0, -1.0, 0.7, -0.01, 0.0]).astype(np.float32) * np.float32(
        127 * 10.0**power
    )
    stored, misfit = encode(values, INT8, tap)
    assert misfit.rows == ()
    found = decode(stored, INT8, tap)
    assert (found * values >= 0).all()
    assert np.abs(found - values).max() <= max(127 * 2**-25 + 1e-9, 127 * 10.0**power * 0.01)


def test_long_inputs_are_quantised_as_their_rows_alone() -> None:
    values = states(700, 768)
    tap = calibrate({0: values}).tap(0)
    alone = [encode(values[row : row + 1], INT8, tap)[0] for row in range(0, 700, 13)]
    np.testing.assert_array_equal(encode(values, INT8, tap)[0][::13], np.concatenate(alone))


def test_a_sample_that_is_not_finite_is_refused() -> None:
    values = states(10, 4)
    values[2, 1] = np.nan
    with pytest.raises(NonFinite, match="h03"):
        calibrate({3: values})


def values_of(array: Any) -> NDArray[np.float32]:
    """What the attribute `formula` says, with nothing of ours."""
    layout = array.attrs["int8"]
    rows = array[:]
    part = {name: rows[:, first:stop] for name, (first, stop) in layout["bytes"].items()}
    ordinary = [c for c in range(layout["width"]) if c not in layout["outliers"]]
    scale = np.ascontiguousarray(part["scale"]).view("<f2").astype(np.float32)
    values = np.empty((len(rows), layout["width"]), np.float32)
    values[:, ordinary] = part["q"] * scale
    values[:, layout["outliers"]] = np.ascontiguousarray(part["o"]).view("<f2")
    values = values * np.float32(layout["channel_scale"]) + np.float32(layout["channel_shift"])
    values[(rows == -128).all(axis=1)] = np.nan
    return values


@pytest.mark.parametrize("name", ["int8", "int8+zstd"])
def test_a_stranger_decodes_the_same_from_the_attributes_alone(builders: ModuleType, tmp_path: Path, name: str) -> None:
    case = builders.Case(encoding=encoding(name).name, widths={"encoder": 200, "decoder": 4})
    store = case.build(tmp_path / "store")
    root = zarr.open_group(tmp_path / "store", mode="r")
    for array in store.plan.arrays():
        groups = range(array.split_plan.groups)
        ours = [store.chunk(array.split, array.stream, array.tap, group) for group in groups]
        calibration = store.calibration(array.split, array.stream)
        assert calibration is not None
        expected = decode(np.concatenate(ours), store.encoding, calibration.tap(array.tap))
        np.testing.assert_array_equal(values_of(root[array.path]), expected)
        values = case.values(array.split, array.stream, array.tap)
        np.testing.assert_allclose(expected[case.rows(array.split, array.stream)], values, atol=0.05)


def test_unwritten_rows_of_an_unfinished_store_decode_to_nan(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case(encoding="int8")
    writer = case.create(tmp_path / "store")
    root = zarr.open_group(tmp_path / "store", mode="r")
    for array in writer.plan.arrays():
        record = array.stream_plan.calibration
        assert record is not None
        tap = case.calibrations()[array.stream].tap(array.tap)
        assert np.isnan(decode(root[array.path][:], INT8, tap)).all()


def test_the_calibration_is_part_of_what_a_store_is_made_from(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case(encoding="int8")
    writer = case.create(tmp_path)
    record = writer.plan.splits["train"].streams["encoder"].calibration
    assert record is not None
    assert record.file in writer.plan.files
    assert (tmp_path / "sherl" / record.file).is_file()

    other = builders.Case(encoding="int8")
    fitted = case.calibrations()
    fitted["encoder"] = calibrate({tap: case.values("train", "encoder", tap) * 2 for tap in case.taps["encoder"]})
    other.calibrations = lambda: fitted
    with pytest.raises(StoreStale, match=r"splits\.train\.encoder\.calibration"):
        other.create(tmp_path)
    assert case.create(tmp_path).plan == writer.plan


def test_a_calibration_left_by_a_writer_that_died_before_its_plan_is_in_nobodys_way(
    builders: ModuleType, tmp_path: Path
) -> None:
    case = builders.Case(encoding="int8")
    expected = case.build(tmp_path / "whole").digest
    left = calibrate({tap: case.values("train", "encoder", tap) * 2 for tap in case.taps["encoder"]})
    path = tmp_path / "store" / "sherl" / left.record("encoder").file
    path.parent.mkdir(parents=True)
    path.write_bytes(left.to_bytes())
    store = case.build(tmp_path / "store")
    assert store.digest == expected
    assert store.verify(deep=True) == []


def test_a_plan_needs_the_calibrations_it_names(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case(encoding="int8")
    with pytest.raises(InvalidInput, match="give its bytes"):
        StoreWriter.create(tmp_path, case.plan(), builders.FILES, case.tables())
    assert not (tmp_path / "sherl" / "plan.json").exists()


def test_a_plan_says_calibration_for_int8_and_for_nothing_else(builders: ModuleType) -> None:
    """So that plans of stores made before int8 keep their bytes, and their digests."""
    plain, rows = builders.Case(encoding="bfloat16").plan(), builders.Case(encoding="int8").plan()
    assert b"calibration" not in plain.to_bytes()
    for changed in ({"encoding": "int8"}, {"encoding": "bfloat16+zstd"}, {"encoding": "blosc"}):
        with pytest.raises(StoreCorrupt, match=r"encoding|calibration"):
            parse(Plan, plain.model_copy(update=changed).to_bytes(), "plan.json")
    with pytest.raises(StoreCorrupt, match="has no calibration"):
        parse(Plan, rows.model_copy(update={"encoding": "float32"}).to_bytes(), "plan.json")


def test_a_version_that_does_not_know_a_codec_refuses_the_store(
    builders: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builders.Case(encoding="int8+zstd:1").build(tmp_path)
    monkeypatch.setattr(base, "KNOWN_FEATURES", frozenset({"zstd"}))
    with pytest.raises(StoreNotUsable, match="needs int8"):
        Store.open(tmp_path)


def test_a_damaged_calibration_is_noticed_before_it_is_used(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case(encoding="int8")
    store = case.build(tmp_path)
    (path,) = (tmp_path / "sherl" / "calibration").glob("encoder-*")
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(StoreCorrupt, match="calibration/encoder"):
        Store.open(tmp_path).calibration("train", "encoder")
    assert [finding.path for finding in store.verify(deep=True)] == [f"sherl/calibration/{path.name}"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tree: tree["taps"][0]["scale"].pop(), "need 8 numbers"),
        (lambda tree: tree["taps"][0]["scale"].__setitem__(0, 0.0), "scales above 0"),
        (lambda tree: tree["taps"][0]["shift"].__setitem__(0, 1e300), "finite in float32"),
        (lambda tree: tree["taps"].append(tree["taps"][0]), "must ascend"),
        (lambda tree: tree["taps"][0].__setitem__("outliers", [8]), "outliers"),
        (lambda tree: tree.__setitem__("code", "import os"), "code"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(change: Any, told: str) -> None:
    tree = json.loads(calibrate({0: states(50, 8)}).to_bytes())
    change(tree)
    with pytest.raises(StoreCorrupt, match=told):
        parse(Calibration, json.dumps(tree).encode(), "calibration.json")


def test_a_calibration_survives_its_json() -> None:
    made = calibrate({0: states(50, 8), 3: states(50, 8, seed=1)})
    again = parse(Calibration, made.to_bytes(), "calibration.json")
    assert again == made
    np.testing.assert_array_equal(again.tap(3).scale, made.tap(3).scale)
