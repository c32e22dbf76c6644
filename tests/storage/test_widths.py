"""Streams whose taps are not equally wide: packed, written, read, grown and verified as any other."""

import gc
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import growth_builders as cases
import numpy as np
import pytest
import zarr

from sherl_cache.storage import (
    Batch,
    MemoryFiles,
    Plan,
    Store,
    StoreWriter,
    Stream,
    calibrate,
    decode,
    encode,
    encoding,
    store_bytes,
)
from sherl_cache.storage.budget import aligned
from sherl_cache.storage.documents import parse
from sherl_cache.storage.errors import StoreNotUsable, StoreStale

WIDTHS = {0: 3, 1: 8, 2: 8, 4: 37}
TAPS = (0, 1, 2, 4)


def case_of(builders: ModuleType, encoding: str = "float32") -> Any:
    return builders.Case(
        encoding=encoding, taps={"encoder": TAPS, "decoder": (1,)}, widths={"encoder": WIDTHS, "decoder": 4}
    )


@pytest.fixture(scope="module")
def store(builders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Store:
    built: Store = case_of(builders).build(tmp_path_factory.mktemp("widths") / "store")
    return built


@pytest.mark.parametrize("encoding", ["float32", "bfloat16+zstd:1", "int8", "int8+zstd:3"])
def test_every_array_has_its_own_width_and_zarr_alone_reads_what_the_store_gives(
    builders: ModuleType, tmp_path: Path, encoding: str
) -> None:
    case = case_of(builders, encoding)
    store = case.build(tmp_path / "store")
    assert store.plan.features[-2 if "zstd" in encoding else -1] == "widths"
    calibration = store.calibration("train", "encoder")
    arrays = zarr.open_group(tmp_path / "store", mode="r")
    for tap, width in WIDTHS.items():
        stored = width if calibration is None else calibration.tap(tap).stored_width
        array = arrays[f"train/encoder/h{tap:02d}"]
        whole = np.concatenate([store.chunk("train", "encoder", tap, g) for g in range(store.split("train").groups)])
        assert array.shape == whole.shape == (len(whole), stored)
        np.testing.assert_array_equal(array[:], whole)
    assert store.verify(deep=True) == []
    if store.encoding.compressed:
        assert sum(store_bytes(store.plan).arrays.values()) >= array_bytes(store)
    else:
        assert sum(store_bytes(store.plan).arrays.values()) == array_bytes(store)


def array_bytes(store: Store) -> int:
    return sum(record.bytes for receipt in store.receipts.values() for record in receipt.arrays.values())


def stream_of(store: Store, taps: tuple[int, ...] = TAPS, **options: Any) -> Stream:
    settings: dict[str, Any] = {"batch_examples": 7, "window": 3, "budget_bytes": 1 << 24, "seed": 5, **options}
    return Stream(store, "train", {"encoder": taps, "decoder": (1,)}, **settings)


def assert_rows_are_those_of_the_arrays(store: Store, batch: Batch, taps: tuple[int, ...]) -> None:
    table, groups = store.examples("train"), range(store.split("train").groups)
    rows = batch.streams["encoder"].taps
    assert isinstance(rows, tuple) == (len({WIDTHS[tap] for tap in taps}) > 1)
    assert len(rows) == len(taps)
    offsets, lengths = table.offsets("encoder"), table.lengths["encoder"].values  # one segment an example
    places = np.concatenate([np.arange(offsets[e], offsets[e] + lengths[e]) for e in batch.examples])
    for found, tap in zip(rows, taps, strict=True):
        whole = np.concatenate([store.chunk("train", "encoder", tap, group) for group in groups])
        np.testing.assert_array_equal(found, whole[places])


@pytest.mark.parametrize("taps", [TAPS, (1, 2), (0, 4)])
@pytest.mark.parametrize(
    "options",
    [
        {"in_memory": False},
        {"in_memory": False, "threads": 0, "batch_examples": 40},
        {"in_memory": True},
        {"in_memory": False, "batch_examples": None, "batch_tokens": 60},
    ],
)
def test_every_batch_holds_the_rows_of_the_arrays(store: Store, taps: tuple[int, ...], options: dict[str, Any]) -> None:
    stream = stream_of(store, taps, **options)
    seen = []
    for epoch in (0, 1):  # first whole chunks, checked, then only what is wanted
        for batch in stream.epoch(epoch):
            kept = batch.copy()
            assert_rows_are_those_of_the_arrays(store, kept, taps)
            seen.append(kept.examples)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.repeat(np.arange(60), 2))
    assert stream.report().mode == ("memory" if options["in_memory"] else "ahead" if stream.threads else "block")


def test_a_store_held_as_bytes_serves_the_same(store: Store) -> None:
    MemoryFiles.named("widths").load(str(store.root))
    kept = Store.open("memory://widths")
    for batch in stream_of(kept, in_memory=False).epoch(0):  # through bounce buffers
        assert_rows_are_those_of_the_arrays(store, batch, TAPS)
    MemoryFiles.forget("widths")


def test_order_of_examples_does_not_depend_on_the_widths_read(store: Store) -> None:
    orders = [[b.examples.tolist() for b in stream_of(store, taps).epoch(1)] for taps in (TAPS, (1, 2), (4,))]
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize("in_memory", [False, True])
def test_what_reading_allocates_stays_within_the_budget(store: Store, in_memory: bool) -> None:
    list(stream_of(store).epoch(0))  # indexes, lazy imports and caches are there
    needs = stream_of(store, budget_bytes=1 << 30).needs
    budget = needs.in_memory if in_memory else needs.by_blocks(2)
    stream = stream_of(store, budget_bytes=budget, in_memory=in_memory)
    gc.collect()
    tracemalloc.start()
    try:
        for _ in stream.epoch(0):
            assert stream.buffers.held_bytes <= budget
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= budget


def test_all_rows_in_memory_take_the_bytes_of_their_own_widths(store: Store) -> None:
    stream = stream_of(store)
    rows = {"encoder": 4 * sum(WIDTHS.values()), "decoder": 4 * 4}
    plans = store.split("train").streams
    taken = sum(plans[name].tokens * size for name, size in rows.items())
    assert taken <= stream.needs.rows <= aligned(taken) + 3 * 4096


NARROW = cases.Growing(
    widths={"encoder": WIDTHS, "decoder": 4}, taps={"encoder": (1, 2), "decoder": (1,)},
    sized_for={"encoder": (1, 2), "decoder": (1,)},
)  # fmt: skip
GROWN = {
    "wider taps": replace(NARROW, taps={"encoder": TAPS, "decoder": (1,)}),
    "a wider tap alone": replace(NARROW, taps={"encoder": (4,), "decoder": (1,)}),
    "examples": replace(NARROW, parts={"train": (40, 25)}, taps={"encoder": TAPS, "decoder": (1,)}),
    "a split": replace(NARROW, parts={"train": (40,), "validation": (12,)}, taps={"encoder": TAPS, "decoder": (1,)}),
}


@pytest.mark.parametrize("name", GROWN)
def test_a_store_of_equal_widths_grows_by_other_ones(tmp_path: Path, name: str) -> None:
    begun = NARROW.build(tmp_path)
    assert begun.plan.features == ()
    assert all("widths" not in stream for stream in json.loads(begun.plan.to_bytes())["splits"]["train"]["streams"])
    store = GROWN[name].build(tmp_path)
    assert store.plan.features == ("widths",)
    cases.check(store, GROWN[name])
    cases.check(store, NARROW if len(GROWN[name].parts["train"]) == 1 else GROWN[name])
    assert store.verify(deep=True) == []
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    less = replace(GROWN[name], taps=NARROW.taps)
    assert GROWN[name].create(tmp_path).missing() == less.create(tmp_path).missing() == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_another_width_of_a_tap_that_is_there_is_stale(tmp_path: Path) -> None:
    NARROW.build(tmp_path)
    other = replace(NARROW, widths={"encoder": {**WIDTHS, 2: 9}, "decoder": 4})
    with pytest.raises(StoreStale, match=r"splits\.train\.encoder\.widths: nothing in the store, \[8, 9\] asked for"):
        other.create(tmp_path)
    GROWN["wider taps"].build(tmp_path)
    with pytest.raises(StoreStale, match=r"splits\.train\.encoder\.width"):
        replace(GROWN["wider taps"], widths={"encoder": {**WIDTHS, 0: 5}, "decoder": 4}).create(tmp_path)


def test_damage_in_a_narrow_tap_is_found_and_repaired(tmp_path: Path) -> None:
    case = GROWN["wider taps"]
    store = case.build(tmp_path)
    right = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    shard = tmp_path / "train/encoder/h00/c/0/0"
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    (finding,) = store.verify(deep=True)
    assert (finding.tap, finding.chunk) == ("train/encoder/h00", 0)
    case.repair(tmp_path, [finding])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == right


@pytest.mark.parametrize(
    ("widths", "told"),
    [([8, 8], "not all the same"), ([8], "one a tap"), ([8, 3], "widest of 8"), ([8, 0], "greater than or equal to 1")],
)
def test_widths_of_a_plan_that_do_not_fit_are_refused(tmp_path: Path, widths: list[int], told: str) -> None:
    plan = json.loads(NARROW.build(tmp_path).plan.to_bytes())
    plan["splits"]["train"]["streams"]["encoder"]["widths"] = widths
    if told == "widest of 8":
        plan["splits"]["train"]["streams"]["encoder"]["width"] = 9
        told = "widest of 9"
    with pytest.raises(Exception, match=told):
        parse(Plan, json.dumps(plan).encode(), "plan.json")


def test_a_version_that_does_not_know_widths_refuses_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GROWN["wider taps"].build(tmp_path)
    monkeypatch.setattr("sherl_cache.storage.documents.base.KNOWN_FEATURES", frozenset({"int8"}))
    with pytest.raises(StoreNotUsable, match="needs widths, unknown to this version"):
        Store.open(tmp_path)


def test_values_of_another_width_are_refused(tmp_path: Path) -> None:
    writer: StoreWriter = GROWN["wider taps"].create(tmp_path)
    buffer = writer.buffer(writer.units()[0])
    with pytest.raises(Exception, match=r"shape \(1, 8\), \(1, 3\) was planned"):
        buffer.put("encoder", 0, np.asarray([0]), np.zeros((1, 8), np.float32))


def test_outlier_channels_are_as_many_as_each_width_affords(tmp_path: Path, builders: ModuleType) -> None:
    """Oracle: 0.51 of float16's bytes: 64 channels afford none, 384 five, 1,024 eighteen."""
    rng = np.random.default_rng(0)
    samples = {}
    for tap, width in enumerate((64, 384, 1024)):
        rows = rng.standard_normal((200, width)).astype(np.float32)
        rows[:, ::7] *= np.exp(2 * rng.standard_normal(rows[:, ::7].shape))  # tails that quantiles do not see
        samples[tap] = rows
    found = calibrate(samples)
    assert [len(found.tap(tap).outliers) for tap in samples] == [0, 5, 18]
    assert parse(type(found), found.to_bytes(), "calibration.json") == found
    widths = {tap: rows.shape[1] for tap, rows in samples.items()}
    case = builders.Case(
        encoding="int8", taps={"encoder": (0, 1, 2)}, widths={"encoder": widths}, examples={"train": 30}
    )
    case.calibrations = lambda: {"encoder": found}
    store = case.build(tmp_path)
    for tap in widths:
        assert store.chunk("train", "encoder", tap, 0).shape[1] == found.tap(tap).stored_width


def test_a_rectified_channel_does_not_set_the_scale_of_a_row() -> None:
    """Of values of which nine in ten are zero, the rest up to some deviations: within 2 % of a channel's own spread."""
    rng = np.random.default_rng(0)
    rows = np.maximum(rng.standard_normal((400, 48)) - np.linspace(0, 1.3, 48), 0).astype(np.float32)
    channels = calibrate({0: rows}).tap(0)
    stored, misfit = encode(rows, encoding("int8"), channels)
    assert misfit.rows == ()
    error = np.sqrt(np.square(decode(stored, encoding("int8"), channels) - rows).mean(0)) / rows.std(0)
    assert error.max() < 0.02
