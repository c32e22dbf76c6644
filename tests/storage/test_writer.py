"""Writing: going on where it stopped, refusing another store, refusing what does not fit."""

import os
import stat
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sherl_cache.storage import Plan, Store, StoreWriter, Stream, store_bytes
from sherl_cache.storage.errors import (
    AccessDenied,
    InvalidInput,
    NonFinite,
    StoreIncomplete,
    StoreStale,
    UsageError,
)


def test_going_on_writes_only_what_is_missing(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case()
    expected = case.build(tmp_path / "whole").digest
    writer = case.create(tmp_path / "store")
    units = writer.missing()
    assert units == writer.units()
    for unit in units[:2]:
        case.fill(writer, unit)
    again = case.create(tmp_path / "store")
    assert again.missing() == units[2:]
    assert again.warnings == []
    with pytest.raises(StoreIncomplete, match=rf"{len(units) - 2} of {len(units)}.*{units[2].name}"):
        again.finalize()
    with pytest.raises(StoreIncomplete, match=rf"{len(units) - 2} of {len(units)}.*{units[2].name}"):
        Store.open(tmp_path / "store")
    for unit in again.missing():
        case.fill(again, unit)
    with pytest.raises(StoreIncomplete, match="no valid manifest"):
        Store.open(tmp_path / "store")
    manifest = again.finalize()
    assert again.finalize() == manifest
    assert Store.open(tmp_path / "store").digest == manifest.digest == expected


def test_a_unit_written_twice_is_one_unit(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case()
    one, other = case.create(tmp_path), case.create(tmp_path)
    unit = one.missing()[0]
    buffers = [one.buffer(unit), other.buffer(unit)]
    for buffer in buffers:
        for (stream, tap), written in buffer.written.items():
            rows = case.rows(unit.split, stream)
            rows = rows[rows < len(written)]
            buffer.put(stream, tap, rows, case.values(unit.split, stream, tap)[: len(rows)])
    assert (
        one.write(unit, buffers[0])
        == other.write(unit, buffers[1])
        == StoreWriter.open(tmp_path).write(unit, buffers[0])
    )


def test_a_partial_store_serves_its_committed_units(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case()
    writer = case.create(tmp_path)
    unit = writer.missing()[1]
    case.fill(writer, unit)
    store = Store.open(tmp_path, allow_partial=True)
    assert not store.complete
    groups = list(range(unit.first_group, unit.first_group + unit.groups))
    assert store.groups("train").tolist() == groups
    stream = Stream(store, "train", {"encoder": (0,)}, batch_examples=3, window=2, budget_bytes=1 << 20)
    seen = np.concatenate([batch.examples for batch in stream.epoch(0)])
    assert sorted(seen) == list(range(unit.first_example, unit.first_example + unit.examples))
    with pytest.raises(InvalidInput, match="validation"):
        Stream(store, "validation", {"encoder": (0,)}, batch_examples=3, window=2, budget_bytes=1 << 20)
    with pytest.raises(StoreIncomplete, match="not committed"):
        store.chunk("train", "encoder", 0, 0)


CHANGES: dict[str, dict[str, Any]] = {
    "model.weights": {"identity": {"model.weights": "def"}},
    "text.format": {"identity": {"model.weights": "abc", "text.format": 2}},
    "encoding": {"encoding": "float16"},
    "splits.train.other.taps": {
        "taps": {"encoder": (0, 2, 3), "decoder": (1,), "other": (1,)},
        "widths": {"encoder": 8, "decoder": 4, "other": 4},
    },
    "splits.train.encoder.width": {"widths": {"encoder": 4, "decoder": 4}},
    "splits.train.order_key": {"seed": 1},
    "splits.train.examples": {"examples": {"train": 59, "validation": 17}},
    "splits.train.groups_per_unit": {"unit_memory": 1},
    "splits.train.encoder.chunk_rows": {"chunk_bytes": (256, 256)},
}


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_another_store_in_the_same_place_is_refused_with_the_field(
    builders: ModuleType, tmp_path: Path, field: str
) -> None:
    case = builders.Case()
    before = case.build(tmp_path).digest
    with pytest.raises(StoreStale, match=rf"{field}: .* in the store, .* asked for"):
        replace(case, **CHANGES[field]).create(tmp_path)
    assert Store.open(tmp_path).digest == before


def test_exactly_the_fields_that_differ_are_told(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case(identity={"model.weights": "a" * 64, "text.length": 128, "lower": True})
    case.create(tmp_path)
    other = replace(case, identity={"model.weights": "b" * 64, "text.length": 128, "lower": 1})
    with pytest.raises(StoreStale) as caught:
        other.create(tmp_path)
    told = str(caught.value)
    assert "model.weights: aaaaaaaaaaaa.. in the store, bbbbbbbbbbbb.. asked for" in told
    assert "lower: true in the store, 1 asked for" in told
    assert "text.length" not in told
    assert told.count("asked for;") + told.count("asked for.") == 2


def test_other_blobs_are_refused(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case()
    case.create(tmp_path)
    changed = {**builders.FILES, "weights/head.safetensors": b"other"}
    with pytest.raises(StoreStale, match=r"files.weights/head.safetensors"):
        StoreWriter.create(tmp_path, case.plan(), changed, case.tables())


def test_another_environment_is_a_warning(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case(environment={"torch": "2.13", "device": "cpu"})
    case.create(tmp_path)
    writer = replace(case, environment={"torch": "2.14", "device": "cpu"}).create(tmp_path)
    assert writer.warnings == ["torch: 2.13 when the store was begun, 2.14 now"]


@pytest.mark.parametrize(
    ("encoding", "value", "told"),
    [
        ("float32", np.nan, "1 NaN"),
        ("float32", np.inf, "1 infinite"),
        ("bfloat16", np.nan, "1 NaN"),
        ("float16", 70000.0, r"1 too large.*float16.*bfloat16"),
    ],
)
def test_what_does_not_fit_is_refused_and_other_units_stay(
    builders: ModuleType, tmp_path: Path, encoding: str, value: float, told: str
) -> None:
    case = builders.Case(encoding=encoding)
    writer = case.create(tmp_path)
    *others, last = [unit for unit in writer.missing() if unit.split == "train"]
    for unit in others:
        case.fill(writer, unit)
    buffer = writer.buffer(last)
    example = last.first_example + 2
    table = writer.table("train")
    row = table.offsets("encoder")[table.lengths["encoder"].starts()[example]]
    for (stream, tap), written in buffer.written.items():
        rows = case.rows("train", stream)
        mine = (rows >= (first := buffer.first_row(stream, tap))) & (rows < first + len(written))
        values = case.values("train", stream, tap)[mine]
        if (stream, tap) == ("encoder", 3):
            values[rows[mine] == row, 1] = value
        buffer.put(stream, tap, rows[mine], values)
    with pytest.raises(NonFinite, match=rf"train/encoder/h03: {told}") as caught:
        writer.write(last, buffer)
    assert repr(f"train/{case.packed('train').order[example]}") in str(caught.value)
    assert [unit.split for unit in writer.missing()].count("train") == 1
    case.fill(writer, last)
    assert [unit.split for unit in writer.missing()].count("train") == 0


def test_rows_that_were_not_put_are_noticed(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case()
    writer = case.create(tmp_path)
    unit = writer.missing()[0]
    with pytest.raises(InvalidInput, match="not the rows of its examples"):
        writer.write(unit, writer.buffer(unit))
    buffer = writer.buffer(unit)
    with pytest.raises(InvalidInput, match="outside of the unit"):
        buffer.put("encoder", 0, np.asarray([10**6]), np.ones((1, 8), np.float32))
    with pytest.raises(InvalidInput, match="shape"):
        buffer.put("encoder", 0, np.asarray([0]), np.ones((1, 7), np.float32))
    with pytest.raises(InvalidInput, match="encoder/h01"):
        buffer.put("encoder", 1, np.asarray([0]), np.ones((1, 8), np.float32))
    with pytest.raises(InvalidInput, match=unit.name):
        writer.write(writer.missing()[1], buffer)


def test_a_deleted_or_cut_shard_is_written_again(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case()
    store = case.build(tmp_path)
    shards = sorted(record.path for receipt in store.receipts.values() for record in receipt.arrays.values())
    (tmp_path / shards[0]).unlink()
    os.truncate(tmp_path / shards[-1], 10)
    writer = case.create(tmp_path)
    assert len(writer.missing()) == 2
    again = case.build(tmp_path)
    assert again.digest == store.digest
    assert again.verify(deep=True) == []


def test_a_folder_with_other_things_is_not_made_a_store(builders: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        builders.Case().create(tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        builders.Case().create(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_moved_store_opens(builders: ModuleType, tmp_path: Path) -> None:
    digest = builders.Case().build(tmp_path / "here").digest
    (tmp_path / "here").rename(tmp_path / "there")
    store = Store.open(tmp_path / "there")
    assert store.digest == digest
    assert store.verify(deep=True) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_without_permission_is_refused(builders: ModuleType, tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(AccessDenied, match="Permission denied"):
            builders.Case().create(tmp_path / "store")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encoding": "bfloat16", "examples": {"train": 700}, "unit_memory": 1 << 20},
        {
            "examples": {"train": 3000},
            "taps": {"encoder": (0, 1, 2)},
            "widths": {"encoder": 96},
            "chunk_bytes": (1 << 16, 1 << 18),
            "unit_memory": 1 << 22,
        },
    ],
)
def test_the_bill_is_what_the_disk_holds(builders: ModuleType, tmp_path: Path, options: dict[str, Any]) -> None:
    case = builders.Case(**options)
    bill = store_bytes(case.plan(), files={path: len(data) for path, data in builders.FILES.items()})
    store = case.build(tmp_path)
    on_disk = {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    for array in store.plan.arrays():
        held = sum(size for path, size in on_disk.items() if path.is_relative_to(tmp_path / array.path / "c"))
        assert bill.arrays[array.path] == held
    assert bill.file_count == len(on_disk)
    assert bill.total == sum(bill.arrays.values()) + bill.table + bill.files + bill.documents
    exact = store_bytes(store.plan)
    assert exact.files == bill.files == sum(map(len, builders.FILES.values()))
    assert exact.total == pytest.approx(store.bytes, rel=0.02)
    if "widths" in options:  # arrays of a real width outweigh what is estimated
        assert bill.total == pytest.approx(store.bytes, rel=0.05)


def test_a_plan_survives_its_json(builders: ModuleType) -> None:
    plan = builders.Case().plan()
    assert Plan.model_validate_json(plan.to_bytes()) == plan
