"""Damage of every kind is found, and located down to the chunk and its examples."""

import json
import os
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import Copy, MakeCopy

from sherl_cache.storage import Store, Stream, verify_store
from sherl_cache.storage.errors import (
    SherlCacheError,
    StoreCorrupt,
    StoreIncomplete,
    StoreMissing,
    StoreNotUsable,
)
from sherl_cache.storage.shards import chunk_stride


@pytest.fixture(scope="module")
def pristine(builders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.Case().build(tmp_path_factory.mktemp("verify") / "store").root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def copy(pristine: Path, copied: MakeCopy) -> Copy:
    """Of the pristine store, at each kind of place."""
    return copied(pristine)


def flip(copy: Copy, path: str, place: int, bits: int = 1) -> None:
    data = bytearray(copy.read(path))
    data[place] ^= bits
    copy.write(path, bytes(data))


def stream_through(store: Store) -> None:
    taps = {name: plan.taps for name, plan in store.split("train").streams.items()}
    for _ in Stream(store, "train", taps, batch_examples=5, window=2, budget_bytes=1 << 24).epoch(0):
        pass


def test_a_whole_store_has_no_findings(copy: Copy) -> None:
    assert verify_store(copy.place) == verify_store(copy.place, deep=True) == Store.open(copy.place).verify() == []


def test_a_flipped_byte_names_shard_chunk_and_examples(copy: Copy) -> None:
    store = Store.open(copy.place)
    plan = store.split("train")
    group = plan.groups_per_unit + 1
    unit, slot = divmod(group, plan.groups_per_unit)
    path = f"train/encoder/h02/c/{unit}/0"
    flip(copy, path, slot * chunk_stride(store.chunk_bytes(plan.streams["encoder"])) + 33)
    assert verify_store(copy.place) == []
    [finding] = verify_store(copy.place, deep=True)
    table = store.examples("train")
    first, stop = table.first_examples[group : group + 2]
    assert (finding.kind, finding.path, finding.tap) == ("corrupt", path, "train/encoder/h02")
    assert (finding.unit, finding.chunk) == (f"train-{unit:05d}", group)
    assert finding.examples == tuple(table.source_ids(first, min(stop, first + 8)))
    told = rf"train/encoder/h02: .*{path}: .*chunk {slot}.*row group {group}, examples {first} to {stop - 1}"
    with pytest.raises(StoreCorrupt, match=told):
        store.chunk("train", "encoder", 2, group)
    with pytest.raises(StoreCorrupt, match=told):
        stream_through(store)


def test_any_flipped_bit_of_any_file_is_found(copy: Copy) -> None:
    rng = np.random.default_rng(0)
    files = copy.paths()
    for path in [*files, *(files[i] for i in rng.integers(0, len(files), 20))]:
        place, bit = int(rng.integers(len(copy.read(path)))), 1 << int(rng.integers(8))
        flip(copy, path, place, bit)
        try:
            found = verify_store(copy.place, deep=True)
        except StoreNotUsable:
            found = ["a newer format"]
        assert found, f"{path}: byte {place}, bit {bit}"
        flip(copy, path, place, bit)
    assert verify_store(copy.place, deep=True) == []


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "long"])
def test_a_damaged_file_is_found_at_opening(copy: Copy, damage: str) -> None:
    for path in copy.paths():
        data = copy.read(path)
        if damage == "missing":
            copy.remove(path)
        else:
            copy.write(path, {"cut": data[:-1], "empty": b"", "long": data + b" "}[damage])
        if path == "sherl/plan.json" and damage == "missing":
            with pytest.raises(StoreMissing):
                verify_store(copy.place)
        elif not (damage == "long" and path.endswith(".json") and path.startswith("sherl/")):
            assert verify_store(copy.place), path
            with pytest.raises((StoreCorrupt, StoreIncomplete, StoreMissing)):
                Store.open(copy.place)
        copy.write(path, data)
    assert Store.open(copy.place).verify(deep=True) == []


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_file_damaged_while_the_store_is_open_is_found_by_the_stream(copy: Copy, damage: str) -> None:
    store = Store.open(copy.place)
    path = "train/encoder/h02/c/1/0"
    if damage == "missing":
        copy.remove(path)
    else:
        copy.write(path, copy.read(path)[:40])
    with pytest.raises(StoreCorrupt, match=rf"train/encoder/h02.*{path}: "):
        stream_through(store)


def swap(copy: Copy, one: str, other: str) -> None:
    data = copy.read(one)
    copy.write(one, copy.read(other))
    copy.write(other, data)


def test_two_valid_shards_swapped_are_found(copy: Copy) -> None:
    one, other = (f"train/encoder/h0{tap}/c/0/0" for tap in (0, 2))
    swap(copy, one, other)
    assert verify_store(copy.place) == []
    assert {finding.path for finding in verify_store(copy.place, deep=True)} == {one, other}


def test_two_receipts_swapped_are_found(copy: Copy) -> None:
    swap(copy, *(f"sherl/receipts/train-0000{index}.json" for index in (0, 1)))
    with pytest.raises(StoreCorrupt, match="another unit"):
        Store.open(copy.place)
    assert {finding.kind for finding in verify_store(copy.place)} == {"corrupt"}


def test_an_unfinished_store_lists_what_is_missing(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case()
    writer = case.create(tmp_path)
    units = writer.missing()
    case.fill(writer, units[0])
    found = verify_store(tmp_path, deep=True)
    assert {finding.kind for finding in found} == {"missing"}
    assert {finding.unit for finding in found} == {*(unit.name for unit in units[1:]), None}
    shard = tmp_path / "train/encoder/h00/c/0/0"
    shard.write_bytes(b"other" + shard.read_bytes()[5:])
    assert "corrupt" in {finding.kind for finding in verify_store(tmp_path, deep=True)}


def test_a_damaged_manifest_yields_to_an_older_one(copy: Copy) -> None:
    digest = Store.open(copy.place).digest
    copy.write("sherl/manifest-2.json", b"{half a manif")
    assert Store.open(copy.place).digest == digest


@pytest.mark.parametrize(
    ("field", "value"),
    [("format", 2), ("features", ["compressed"])],
)
def test_a_newer_format_is_refused_as_such(copy: Copy, field: str, value: object) -> None:
    plan = json.loads(copy.read("sherl/plan.json"))
    copy.write("sherl/plan.json", json.dumps({**plan, field: value}).encode())
    with pytest.raises(StoreNotUsable, match="update sherl-cache"):
        Store.open(copy.place)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "weights/..", "weights\\x", "w/\x00", ""])
def test_names_cannot_leave_the_store(copy: Copy, name: str) -> None:
    plan = json.loads(copy.read("sherl/plan.json"))
    for changed in (
        {**plan, "files": {name: {"bytes": 1, "sha256": "0" * 64}}},
        {**plan, "splits": {name: plan["splits"]["train"]}},
        {**plan, "metadata": {name: {"bytes": 1, "sha256": "0" * 64}}},
    ):
        copy.write("sherl/plan.json", json.dumps(changed).encode())
        with pytest.raises(StoreCorrupt, match="not a valid plan"):
            Store.open(copy.place)


@pytest.mark.parametrize("path", ["train/encoder/h00/c/0/0", "train/encoder", "sherl/receipts/train-00000.json"])
def test_links_are_refused(root: Path, path: str) -> None:
    elsewhere = root.parent / "elsewhere"
    os.rename(root / path, elsewhere)
    os.symlink(elsewhere, root / path)
    with pytest.raises(StoreCorrupt, match="no links"):
        Store.open(root)


def test_a_document_too_large_is_refused_unread(root: Path) -> None:
    os.truncate(root / "sherl/plan.json", 1 << 40)
    with pytest.raises(StoreCorrupt, match="at most"):
        Store.open(root)


@given(st.data())
@settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], max_examples=60
)
def test_garbage_in_documents_gives_our_errors_only(root: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["plan.json", "manifest-1.json", "receipts/train-00000.json"]))
    path = root / "sherl" / name
    before = path.read_bytes()
    garbage = data.draw(
        st.one_of(
            st.binary(max_size=200),
            st.recursive(
                st.none() | st.integers() | st.text(), lambda t: st.lists(t) | st.dictionaries(st.text(), t)
            ).map(lambda tree: json.dumps(tree).encode()),
            st.integers(0, len(before)).map(lambda cut: before[:cut]),
            st.just(b"[" * 100_000),
        )
    )
    path.write_bytes(garbage)
    try:
        if garbage != before:
            with pytest.raises(SherlCacheError):
                Store.open(root)
            assert verify_store(root)
    finally:
        path.write_bytes(before)
