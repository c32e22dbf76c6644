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

from sherl_cache.storage import Store, Stream, verify_store
from sherl_cache.storage.errors import (
    SherlCacheError,
    StoreCorrupt,
    StoreIncomplete,
    StoreMissing,
    StoreNotUsable,
)


@pytest.fixture(scope="module")
def pristine(builders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.Case().build(tmp_path_factory.mktemp("verify") / "store").root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "store")
    return tmp_path / "store"


def flip(path: Path, place: int, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bits
    path.write_bytes(data)


def stream_through(store: Store) -> None:
    taps = {name: plan.taps for name, plan in store.split("train").streams.items()}
    for _ in Stream(store, "train", taps, batch_examples=5, window=2, budget_bytes=1 << 24).epoch(0):
        pass


def test_a_whole_store_has_no_findings(root: Path) -> None:
    assert verify_store(root) == verify_store(root, deep=True) == Store.open(root).verify() == []


def test_a_flipped_byte_names_shard_chunk_and_examples(root: Path) -> None:
    store = Store.open(root)
    plan = store.split("train")
    group = plan.groups_per_unit + 1
    unit, slot = divmod(group, plan.groups_per_unit)
    path = f"train/encoder/h02/c/{unit}/0"
    flip(root / path, slot * (store.chunk_bytes(plan.streams["encoder"]) + 4) + 33)
    assert verify_store(root) == []
    [finding] = verify_store(root, deep=True)
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


def test_any_flipped_bit_of_any_file_is_found(pristine: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    root = tmp_path / "store"
    shutil.copytree(pristine, root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for path in [*files, *(files[i] for i in rng.integers(0, len(files), 60))]:
        place, bit = int(rng.integers(path.stat().st_size)), 1 << int(rng.integers(8))
        flip(path, place, bit)
        try:
            found = verify_store(root, deep=True)
        except StoreNotUsable:
            found = ["a newer format"]
        assert found, f"{path}: byte {place}, bit {bit}"
        flip(path, place, bit)
    assert verify_store(root, deep=True) == []


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "long"])
def test_a_damaged_file_is_found_at_opening(root: Path, damage: str) -> None:
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes({"cut": data[:-1], "empty": b"", "long": data + b" "}[damage])
        name = str(path.relative_to(root))
        if name == "sherl/plan.json" and damage == "missing":
            with pytest.raises(StoreMissing):
                verify_store(root)
        elif not (damage == "long" and name.endswith(".json") and name.startswith("sherl/")):
            assert verify_store(root), name
            with pytest.raises((StoreCorrupt, StoreIncomplete, StoreMissing)):
                Store.open(root)
        path.write_bytes(data)
    assert Store.open(root).verify(deep=True) == []


def test_two_valid_shards_swapped_are_found(root: Path) -> None:
    one, other = (root / f"train/encoder/h0{tap}/c/0/0" for tap in (0, 2))
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    assert verify_store(root) == []
    found = verify_store(root, deep=True)
    assert {finding.path for finding in found} == {"train/encoder/h00/c/0/0", "train/encoder/h02/c/0/0"}


def test_two_receipts_swapped_are_found(root: Path) -> None:
    one, other = (root / f"sherl/receipts/train-0000{index}.json" for index in (0, 1))
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    with pytest.raises(StoreCorrupt, match="another unit"):
        Store.open(root)
    assert {finding.kind for finding in verify_store(root)} == {"corrupt"}


def test_an_unfinished_store_lists_what_is_missing(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case()
    writer = case.create(tmp_path)
    units = writer.missing()
    case.fill(writer, units[0])
    found = verify_store(tmp_path, deep=True)
    assert {finding.kind for finding in found} == {"missing"}
    assert {finding.unit for finding in found} == {*(unit.name for unit in units[1:]), None}
    flip(tmp_path / "train/encoder/h00/c/0/0", 3)
    assert "corrupt" in {finding.kind for finding in verify_store(tmp_path, deep=True)}


def test_a_damaged_manifest_yields_to_an_older_one(root: Path) -> None:
    digest = Store.open(root).digest
    (root / "sherl/manifest-2.json").write_bytes(b"{half a manif")
    assert Store.open(root).digest == digest


@pytest.mark.parametrize(
    ("field", "value"),
    [("format", 2), ("features", ["compressed"])],
)
def test_a_newer_format_is_refused_as_such(root: Path, field: str, value: object) -> None:
    plan = json.loads((root / "sherl/plan.json").read_bytes())
    (root / "sherl/plan.json").write_text(json.dumps({**plan, field: value}))
    with pytest.raises(StoreNotUsable, match="update sherl-cache"):
        Store.open(root)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "weights/..", "weights\\x", "w/\x00", ""])
def test_names_cannot_leave_the_store(root: Path, name: str) -> None:
    plan = json.loads((root / "sherl/plan.json").read_bytes())
    for changed in (
        {**plan, "files": {name: {"bytes": 1, "sha256": "0" * 64}}},
        {**plan, "splits": {name: plan["splits"]["train"]}},
        {**plan, "metadata": {name: {"bytes": 1, "sha256": "0" * 64}}},
    ):
        (root / "sherl/plan.json").write_text(json.dumps(changed))
        with pytest.raises(StoreCorrupt, match="not a valid plan"):
            Store.open(root)


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
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
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
