"""A store from a stranger: whatever its documents say, it is refused with our errors, or serves right values."""

import copy
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import growth_builders as cases
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sherl_cache.storage import Store, opening, verify_store
from sherl_cache.storage.errors import StoreCorrupt, StoreIncomplete, StoreMissing, StoreNotUsable

DOCUMENTS = ["plan.json", "plan-2.json", "manifest-1.json", "manifest-2.json"]
DOCUMENTS += ["receipts/train-00000.json", "receipts/train-00000.2.json"]
REFUSALS = (StoreCorrupt, StoreNotUsable, StoreIncomplete)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("trust") / "store"
    cases.BEGUN.build(place)
    cases.EVERYTHING.build(place)
    return place


def places(tree: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield here
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*here, key))


def changed(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    tree = copy.deepcopy(tree)
    inner = tree
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return tree


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from(
        [1 << 31, 1 << 61, 1 << 63, 1 << 200, 1e300, "", "..", "/etc/passwd", "a/../b", "\ud800", "\u0000", [], {}]
    ),
    st.text(max_size=5),
)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], max_examples=150)
def test_a_changed_value_anywhere_is_refused_or_harmless(root: Path, data: st.DataObject) -> None:
    refused_or_harmless(root, data)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_changed_value_is_refused_or_harmless_in_a_store_of_many_units(
    root: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(opening, "UNITS_LOOKED_AT", 0)
    refused_or_harmless(root, data)


def refused_or_harmless(root: Path, data: st.DataObject) -> None:
    path = root / "sherl" / data.draw(st.sampled_from(DOCUMENTS))
    before = path.read_bytes()
    tree = json.loads(before)
    found = list(places(tree))
    damaged = json.dumps(changed(tree, data.draw(st.sampled_from(found)), data.draw(SCALARS)))
    path.write_bytes(damaged.encode("utf-8", "surrogatepass"))
    try:
        try:
            store = Store.open(root)
            whole = store.plan == store.chain.head and len(store.chain.plans) == 2
            cases.check(store, cases.EVERYTHING if whole else cases.BEGUN)
        except REFUSALS as error:
            str(error).encode("utf-8")
        try:
            verify_store(root, deep=True)
        except StoreNotUsable as error:
            str(error).encode("utf-8")
    finally:
        path.write_bytes(before)


@given(st.sampled_from(DOCUMENTS), st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], max_examples=60)
def test_random_bytes_as_a_document_are_refused(root: Path, name: str, data: bytes) -> None:
    path = root / "sherl" / name
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        assert verify_store(root)
        if "manifest" not in name:
            with pytest.raises(REFUSALS):
                Store.open(root)
        elif name == "manifest-2.json":
            cases.check(Store.open(root), cases.BEGUN)
    finally:
        path.write_bytes(before)


BOMBS = {
    "deep": b"[" * 5_000_000,
    "deep objects": b'{"a":' * 1_000_000,
    "a long number": b'{"format":' + b"9" * 5_000_000 + b"}",
    "long features": json.dumps({"features": ["x" * 5_000_000]}).encode(),
    "a surrogate": b'{"features": ["\\ud800"]}',
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", ["plan.json", "plan-2.json", "receipts/train-00000.json"])
def test_bombs_are_refused_in_few_words(root: Path, name: str, bomb: str) -> None:
    path = root / "sherl" / name
    before = path.read_bytes()
    path.write_bytes(BOMBS[bomb])
    try:
        with pytest.raises((StoreCorrupt, StoreNotUsable)) as caught:
            Store.open(root)
        assert len(str(caught.value).encode("utf-8")) < 1000
    finally:
        path.write_bytes(before)


KINDS = ["fifo", "link", "dangling link", "folder", "socket"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "sherl/plan.json",
        "sherl/plan-2.json",
        "sherl/receipts/train-00000.json",
        "sherl/examples/train.parquet",
        "sherl/examples/train.2.parquet",
        "sherl/weights/late.00.safetensors",
        "train/encoder/h00/c/0/0",
        "train/encoder/h00/zarr.json",
        "zarr.json",
    ],
)
def test_special_files_and_links_are_refused_without_hanging(root: Path, tmp_path: Path, name: str, kind: str) -> None:
    place = tmp_path / "s"
    shutil.copytree(root, place)
    aside = tmp_path / "aside"
    (place / name).rename(aside)
    if kind == "fifo":
        os.mkfifo(place / name)
    elif kind == "folder":
        (place / name).mkdir()
    elif kind == "socket":
        os.mknod(place / name, 0o140600)
    else:
        (place / name).symlink_to(aside if kind == "link" else tmp_path / "nothing")
    signal.alarm(20)  # a reader that waits for a writer of the pipe would wait for ever
    try:
        with pytest.raises((StoreCorrupt, StoreMissing)):
            Store.open(place)
        assert verify_store(place)
    finally:
        signal.alarm(0)


def test_the_table_keeps_few_bytes_an_example(root: Path) -> None:
    table = Store.open(root).examples("train")
    resident = sum(ragged.values.nbytes + ragged.counts.nbytes for ragged in table.lengths.values())
    assert (resident + table.label.nbytes + table.gold.nbytes) / len(table) <= 16
