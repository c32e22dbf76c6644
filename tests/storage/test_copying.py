"""Copying a store: the same store at another place, whole or refused, whatever stops it."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from growth_builders import BEGUN, DEEPER, LONGER, Growing, check
from places import MakeCopy, files_below

from benchmarks.storage.seam import Unsynced, Watched, installed
from sherl_cache.storage import Store, StoreWriter, verify_store
from sherl_cache.storage.copying import StoreCopy
from sherl_cache.storage.errors import SherlCacheError, StoreCorrupt, StoreIncomplete, StoreStale, UsageError


def content(root: Path) -> dict[str, bytes]:
    return {path: (root / path).read_bytes() for path in files_below(root)}


def test_a_copy_is_the_store_byte_for_byte_from_every_kind_of_place(
    builders: ModuleType, copied: MakeCopy, tmp_path: Path
) -> None:
    source = builders.Case(encoding="int8").build(tmp_path / "store")
    place = copied(tmp_path / "store").place
    copy, told = StoreCopy(place, tmp_path / "copy"), []
    expected = copy.lacking()
    copy.run(told.append)
    assert content(tmp_path / "copy") == content(tmp_path / "store")
    assert Store.open(tmp_path / "copy").digest == source.digest
    assert verify_store(tmp_path / "copy", deep=True) == []
    assert sum(told) == expected > 0


@pytest.mark.parametrize("grown", [LONGER, DEEPER])
def test_the_copy_of_a_store_grows_with_it_and_only_what_is_new_is_copied(grown: Growing, tmp_path: Path) -> None:
    with installed(Unsynced()):
        BEGUN.build(tmp_path / "store")
        StoreCopy(tmp_path / "store", tmp_path / "copy").run()
        whole = grown.build(tmp_path / "store")
        copy, told = StoreCopy(tmp_path / "store", tmp_path / "copy"), []
        copy.run(told.append)
        StoreCopy(tmp_path / "store", tmp_path / "fresh").run()
    assert 0 < sum(told) < whole.bytes
    for name in ("copy", "fresh"):
        assert Store.open(tmp_path / name).digest == whole.digest
        assert verify_store(tmp_path / name, deep=True) == []
    check(Store.open(tmp_path / "copy"), grown)
    BEGUN.build(tmp_path / "small")
    with pytest.raises(StoreStale, match="with more in it"):
        StoreCopy(tmp_path / "small", tmp_path / "copy")


def test_copying_again_writes_nothing(builders: ModuleType, tmp_path: Path) -> None:
    builders.Case().build(tmp_path / "store")
    StoreCopy(tmp_path / "store", tmp_path / "copy").run()
    before = {path: (tmp_path / "copy" / path).stat().st_mtime_ns for path in files_below(tmp_path / "copy")}
    copy = StoreCopy(tmp_path / "store", tmp_path / "copy")
    assert copy.lacking() == 0
    copy.run(lambda size: pytest.fail("bytes were read"))
    assert {path: (tmp_path / "copy" / path).stat().st_mtime_ns for path in files_below(tmp_path / "copy")} == before


def test_whichever_call_fails_the_copy_is_refused_or_whole_and_the_same_command_finishes(tmp_path: Path) -> None:
    with installed(Unsynced()):
        digest = BEGUN.build(tmp_path / "store").digest
        counted = Watched(lambda number, name, arguments: None)
    with installed(counted):
        StoreCopy(tmp_path / "store", tmp_path / "counted").run()
    refused = 0
    for number in range(1, counted.count + 1, counted.count // 20):
        root = tmp_path / f"copy-{number}"

        def before(at: int, name: str, arguments: tuple[Any, ...], number: int = number) -> None:
            if at >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with installed(Watched(before)), pytest.raises((SherlCacheError, OSError)):
            StoreCopy(tmp_path / "store", root).run()
        try:
            assert Store.open(root).digest == digest
        except (SherlCacheError, OSError):
            refused += 1
        with installed(Unsynced()):
            StoreCopy(tmp_path / "store", root).run()
        assert Store.open(root).digest == digest
        assert verify_store(root, deep=True) == []
    assert refused > 10
    assert counted.count > 100


def test_many_that_copy_to_one_place_at_once_end_with_one_store(builders: ModuleType, tmp_path: Path) -> None:
    digest = builders.Case().build(tmp_path / "store").digest
    errors: list[BaseException] = []

    def copy() -> None:
        try:
            StoreCopy(tmp_path / "store", tmp_path / "copy").run()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=copy) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert Store.open(tmp_path / "copy").digest == digest
    assert verify_store(tmp_path / "copy", deep=True) == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "path", ["train/encoder/h02/c/0/0", "sherl/examples/train.parquet", "sherl/weights/head.safetensors"]
)
def test_damage_is_not_copied(builders: ModuleType, tmp_path: Path, path: str) -> None:
    builders.Case().build(tmp_path / "store")
    flip(tmp_path / "store" / path)
    with pytest.raises(StoreCorrupt, match=f"{path}.*verify --deep"):
        StoreCopy(tmp_path / "store", tmp_path / "copy").run()
    assert not (tmp_path / "copy" / path).exists()
    with pytest.raises(SherlCacheError):
        Store.open(tmp_path / "copy")


def other(builders: ModuleType, root: Path) -> None:
    builders.Case(identity={"model.weights": "another"}).build(root)


def foreign(builders: ModuleType, root: Path) -> None:
    root.mkdir()
    (root / "thesis.tex").write_text("mine")


def nothing(builders: ModuleType, root: Path) -> None:
    """As it is."""


@pytest.mark.parametrize(
    ("begin", "target", "error"),
    [
        (other, "copy", StoreStale),
        (foreign, "copy", UsageError),
        (nothing, "store", UsageError),
        (nothing, "s3://bucket/copy", UsageError),
        (nothing, "memory://copy", UsageError),
    ],
)
def test_a_place_that_a_copy_cannot_go_to_is_refused_and_left_as_it_was(
    builders: ModuleType,
    tmp_path: Path,
    begin: Callable[[ModuleType, Path], None],
    target: str,
    error: type[SherlCacheError],
) -> None:
    builders.Case().build(tmp_path / "store")
    begin(builders, tmp_path / "copy")
    before = content(tmp_path)
    with pytest.raises(error):
        StoreCopy(tmp_path / "store", target if "://" in target else tmp_path / target)
    assert content(tmp_path) == before


def test_an_unfinished_store_is_not_copied(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case()
    writer: StoreWriter = case.create(tmp_path / "store")
    case.fill(writer, writer.units()[0])
    with pytest.raises(StoreIncomplete):
        StoreCopy(tmp_path / "store", tmp_path / "copy")
