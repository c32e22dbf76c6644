"""Stores of more units than opening looks at: they are opened by plans and manifest, and damage to a unit is found when something
of it is read."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import growth_builders as cases
import numpy as np
import pytest
from places import Copy, MakeCopy

from sherl_cache.storage import Store, Stream, examples, keys, verify_store
from sherl_cache.storage import opening as opening_module
from sherl_cache.storage.errors import SherlCacheError, StoreCorrupt, StoreIncomplete
from sherl_cache.storage.readers.local import LocalFiles

GROUPS_OF_UNIT = 4
"""Of the store below."""


@pytest.fixture(scope="module")
def pristine(builders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large") / "store"
    store = builders.Case().build(root)
    assert store.split("train").groups_per_unit == GROUPS_OF_UNIT
    assert len(store.receipts) > 2
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "store"))


@pytest.fixture
def copy(pristine: Path, copied: MakeCopy) -> Copy:
    """Of the pristine store, at each kind of place."""
    return copied(pristine)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every store counts as one of many units."""
    monkeypatch.setattr(opening_module, "UNITS_LOOKED_AT", 0)
    monkeypatch.setattr(opening_module, "REMOTE_UNITS_LOOKED_AT", 0)


def test_opening_reads_no_receipt_and_looks_for_no_shard(
    root: Path, monkeypatch: pytest.MonkeyPatch, large: None
) -> None:
    asked: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        original = getattr(LocalFiles, name)
        return lambda self, path, *rest: (asked.append(path), original(self, path, *rest))[1]

    for name in ("read", "size", "names", "digest", "read_range"):
        monkeypatch.setattr(LocalFiles, name, noted(name))
    store = Store.open(root)
    assert {"sherl/plan.json", "sherl/manifest-1.json"} <= set(asked)
    assert not [path for path in asked if "receipts" in path or "/c/" in path]
    store.chunk("train", "encoder", 2, 0)
    of_units = {path for path in asked if "receipts" in path or "/c/" in path}
    assert of_units == {"sherl/receipts/train-00000.json", "train/encoder/h02/c/0/0"}


@pytest.mark.parametrize("encoding", ["float32", "float32+zstd:1"])
def test_it_serves_what_one_serves_that_was_looked_at_whole(
    builders: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    small = replace(builders.Case(), encoding=encoding).build(tmp_path)
    monkeypatch.setattr(opening_module, "UNITS_LOOKED_AT", 0)
    large = Store.open(tmp_path)
    assert (large.digest, large.bytes, large.array_bytes) == (small.digest, small.bytes, small.array_bytes)
    sizes = {path: (tmp_path / path / "c").rglob("0") for path in large.array_bytes}
    assert large.array_bytes == {
        path: sum(file.stat().st_size for file in files if file.is_file()) for path, files in sizes.items()
    }
    assert dict(large.receipts) == dict(small.receipts)
    taps = {name: plan.taps for name, plan in small.split("train").streams.items()}
    options = {"batch_examples": 5, "window": 2, "budget_bytes": 1 << 24}
    batches = [[batch.copy() for batch in Stream(store, "train", taps, **options).epoch(0)] for store in (small, large)]
    for one, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(one.examples, other.examples)
        for stream, rows in one.streams.items():
            np.testing.assert_array_equal(rows.taps, other.streams[stream].taps)


def flipped_digest(data: bytes) -> bytes:
    receipt = json.loads(data)
    record = next(iter(receipt["arrays"].values()))
    record["sha256"] = hashlib.sha256(data).hexdigest()
    return keys.canonical(receipt)


def other_checksum(data: bytes) -> bytes:
    receipt = json.loads(data)
    record = next(iter(receipt["arrays"].values()))
    record["crc32c"][0] ^= 1
    return keys.canonical(receipt)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-1],
    "empty": lambda data: b"",
    "spaced": lambda data: data + b" ",
    "another digest": flipped_digest,
    "another checksum": other_checksum,
}


@pytest.mark.parametrize("damage", [*DAMAGES, "missing", "swapped"])
def test_a_damaged_receipt_is_found_when_its_unit_is_read(copy: Copy, large: None, damage: str) -> None:
    path, other = "sherl/receipts/train-00001.json", "sherl/receipts/train-00002.json"
    data = copy.read(path)
    if damage == "missing":
        copy.remove(path)
    else:
        copy.write(path, copy.read(other) if damage == "swapped" else DAMAGES[damage](data))
    store = Store.open(copy.place)
    whole = store.chunk("train", "encoder", 0, 0)
    assert whole.any()
    for tap in (0, 2):
        with pytest.raises(StoreCorrupt, match=r"train-00001\.json"):
            store.chunk("train", "encoder", tap, GROUPS_OF_UNIT)
    with pytest.raises(StoreCorrupt, match=r"train-00001\.json"):
        list(Stream(store, "train", {"encoder": (0,)}, batch_examples=5, window=2, budget_bytes=1 << 24).epoch(0))
    assert path in {finding.path for finding in verify_store(copy.place)}


@pytest.mark.parametrize("damage", ["missing", "cut", "long", "swapped"])
def test_a_damaged_shard_is_found_when_it_is_read(copy: Copy, large: None, damage: str) -> None:
    path, other = (f"train/encoder/h0{tap}/c/1/0" for tap in (0, 2))
    data = copy.read(path)
    if damage == "missing":
        copy.remove(path)
    else:
        copy.write(path, {"cut": data[:-1], "long": data + b" ", "swapped": copy.read(other)}[damage])
    store = Store.open(copy.place)
    assert store.chunk("train", "encoder", 0, 0).any()
    with pytest.raises(StoreCorrupt, match="train/encoder/h00"):
        store.chunk("train", "encoder", 0, GROUPS_OF_UNIT)
    assert path in {finding.path for finding in verify_store(copy.place, deep=damage == "swapped")}


def test_a_manifest_with_any_digit_changed_is_none(root: Path, large: None) -> None:
    path = root / "sherl" / "manifest-1.json"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.choice(len(whole), 60, replace=False).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(SherlCacheError):
            Store.open(root)
        with_problem = {finding.path for finding in verify_store(root)} if b'"format":1' in path.read_bytes() else {""}
        assert with_problem & {"", "sherl/manifest-1.json"}, place


def sealed(fields: dict[str, Any]) -> bytes:
    rest = {name: value for name, value in fields.items() if name != "seal"}
    return keys.canonical({**rest, "seal": keys.digest(rest)})


@pytest.mark.parametrize("field", ["fingerprint", "arrays", "receipts", "features", "digest"])
def test_a_manifest_of_something_else_with_a_right_seal_is_refused_or_found_by_verify(
    root: Path, large: None, field: str
) -> None:
    path = root / "sherl" / "manifest-1.json"
    fields = json.loads(path.read_bytes())
    assert sealed(fields) == path.read_bytes()
    array = next(iter(fields["arrays"]))
    other = {
        "fingerprint": "0" * 64,
        "digest": "0" * 64,
        "arrays": {**fields["arrays"], array: fields["arrays"][array] + 1},
        "receipts": {name: value for name, value in fields["receipts"].items() if name != "train-00001"},
        "features": ["zstd"],
    }
    path.write_bytes(sealed({**fields, field: other[field]}))
    if field == "digest":  # what it is the digest of is looked at by verify alone
        assert Store.open(root).digest == "0" * 64
    else:
        with pytest.raises(StoreCorrupt, match="the manifest does not name what the plan asks for"):
            Store.open(root)
    assert verify_store(root)


def test_an_unfinished_store_is_looked_at_whole(builders: ModuleType, tmp_path: Path, large: None) -> None:
    case = builders.Case()
    writer = case.create(tmp_path)
    first, second, *_ = writer.units()
    for unit in (first, second):
        case.fill(writer, unit)
    os.truncate(tmp_path / f"train/encoder/h00/c/{second.index}/0", 40)
    with pytest.raises(StoreIncomplete, match=second.name):
        Store.open(tmp_path)
    store = Store.open(tmp_path, allow_partial=True)
    assert list(store.receipts) == [first.name]
    assert store.chunk("train", "encoder", 0, 0).any()
    with pytest.raises(StoreIncomplete, match=second.name):
        store.chunk("train", "encoder", 0, GROUPS_OF_UNIT)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_a_column_is_the_same_however_many_units_are_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    cases.BEGUN.build(tmp_path)
    store = cases.LONGER.build(tmp_path)
    monkeypatch.setattr(examples, "_BLOCK_EXAMPLES", block)
    table = store.examples("train")
    units = [table.read_unit(unit.index) for unit in store.split("train").units("train")]
    assert len(units) > 2
    for name in ("source_id", "label"):
        assert table.column(name).to_pylist() == [value for unit in units for value in unit.column(name).to_pylist()]
    for stream, lengths in table.lengths.items():
        held = [value for unit in units for value in unit.column(f"{stream}_length").to_pylist()]
        assert lengths.counts.tolist() == [len(segments) for segments in held]
        assert lengths.values.tolist() == [length for segments in held for length in segments]
