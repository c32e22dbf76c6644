"""Writing beside the forward changes nothing: the same bytes, errors that name their unit, nothing half-committed."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reviews_csv import write_csv
from tiny import tiny_bert, tiny_t5

from sherl_cache.stages import extract, overlap
from sherl_cache.stages.front import Front, TokenBatch
from sherl_cache.stages.methods.contract import Packed
from sherl_cache.stages.preparation import Preparation
from sherl_cache.stages.prepare import ExtractSettings, prepare
from sherl_cache.storage import Store, StoreWriter, UnitBuffer, system
from sherl_cache.storage.errors import OutOfSpace

BATCH_TOKENS = 64


@pytest.fixture(scope="module", params=["bert", "t5"])
def prepared(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    root = tmp_path_factory.mktemp(request.param)
    model = {"bert": tiny_bert, "t5": tiny_t5}[request.param](root / "model")
    data = write_csv(root / "train.csv", 60)
    settings = ExtractSettings(
        model=str(model), data=str(data), unit_memory=16 << 10, chunk_bytes=1 << 10, batch_tokens=BATCH_TOKENS
    )
    return prepare(settings, root, torch.device("cpu"))


@pytest.fixture
def front(prepared: Preparation) -> Front:
    return Front(prepared.loaded, prepared.taps)


def plainly(prepared: Preparation, front: Front, root: Path) -> str:
    """Digest of the store that is made one step after the other."""
    writer = prepared.create_writer(root)
    for unit in writer.missing():
        extract.extract_unit(front, writer, unit, writer.table(unit.split).read_unit(unit.index), BATCH_TOKENS)
    return writer.finalize().digest


def test_with_overlap_the_digest_is_that_without(prepared: Preparation, front: Front, tmp_path: Path) -> None:
    writer = prepared.create_writer(tmp_path / "beside")
    assert len(writer.missing()) >= 4
    advanced: list[int] = []
    extract.extract_missing(front, writer, BATCH_TOKENS, advanced.append)
    assert writer.finalize().digest == plainly(prepared, front, tmp_path / "plain")
    assert sum(advanced) == sum(unit.examples for unit in writer.units())
    assert Store.open(tmp_path / "beside").verify(deep=True) == []


def test_a_forward_returns_memory_that_the_next_leaves_alone(prepared: Preparation, front: Front) -> None:
    batch = prepared.sample(4)
    one = front(batch)
    kept = {name: packed.taps.clone() for name, packed in one.items()}
    other = front(prepared.sample(8))
    for name, packed in one.items():
        assert torch.equal(packed.taps, kept[name])
        assert packed.taps.untyped_storage().data_ptr() != other[name].taps.untyped_storage().data_ptr()


def test_at_most_two_buffers_are_in_memory(
    prepared: Preparation, front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = most = 0
    lock = threading.Lock()

    class Counted(UnitBuffer):
        def __init__(self, *arguments: Any) -> None:
            nonlocal alive, most
            super().__init__(*arguments)
            with lock:
                alive += 1
                most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    writer = prepared.create_writer(tmp_path)
    monkeypatch.setattr(StoreWriter, "buffer", lambda self, unit, taps: Counted(self.plan, unit))
    extract.extract_missing(front, writer, BATCH_TOKENS)
    assert most <= overlap.UNITS
    assert writer.missing() == []


class Full(system.System):
    """The disk fills up at the n-th shard."""

    def __init__(self, number: int) -> None:
        self.number, self.count = number, 0

    def link(self, source: str, target: str) -> None:
        if "/c/" in target:
            self.count += 1
            if self.count >= self.number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().link(source, target)


@pytest.fixture
def filling_disk() -> Iterator[Full]:
    real, system.system = system.system, Full(12)
    yield system.system
    system.system = real


def test_a_full_disk_is_told_with_the_unit_and_the_same_again_goes_on(
    prepared: Preparation, front: Front, tmp_path: Path, filling_disk: Full
) -> None:
    writer = prepared.create_writer(tmp_path / "store")
    with pytest.raises(OutOfSpace, match=r"^unit train-\d{5}: .*no room"):
        extract.extract_missing(front, writer, BATCH_TOKENS)
    assert 0 < len(writer.missing()) < len(writer.units())
    assert all(path.name == "receipts" for path in (tmp_path / "store" / "sherl" / "leases").glob("*"))
    filling_disk.number = 1 << 60
    again = prepared.create_writer(tmp_path / "store")
    extract.extract_missing(front, again, BATCH_TOKENS)
    assert again.finalize().digest == plainly(prepared, front, tmp_path / "plain")
    assert [path for path in (tmp_path / "store").rglob("*.tmp")] == []


@pytest.mark.parametrize("error", [MemoryError("no"), KeyboardInterrupt(), RuntimeError("the device is lost")])
def test_an_error_of_the_forward_commits_nothing_torn(
    prepared: Preparation, front: Front, tmp_path: Path, error: BaseException
) -> None:
    """Ctrl-C among them: units that were whole are committed, the one at work is not."""
    calls = 0

    class Failing(Front):
        def __call__(self, batch: TokenBatch) -> dict[str, Packed]:
            nonlocal calls
            calls += 1
            if calls == 20:
                raise error
            return super().__call__(batch)

    failing = Failing(prepared.loaded, prepared.taps)
    writer = prepared.create_writer(tmp_path / "store")
    threads = threading.active_count()
    with pytest.raises(type(error)):
        extract.extract_missing(failing, writer, BATCH_TOKENS)
    assert threading.active_count() == threads
    assert writer.missing()
    extract.extract_missing(front, writer, BATCH_TOKENS)
    assert writer.finalize().digest == plainly(prepared, front, tmp_path / "plain")


def test_an_error_while_encoding_names_its_unit(
    prepared: Preparation, front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = prepared.create_writer(tmp_path)
    monkeypatch.setattr(UnitBuffer, "put", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        extract.extract_missing(front, writer, BATCH_TOKENS)
    assert any(note.startswith("unit train-") for note in caught.value.__notes__)
    assert writer.missing() == writer.units()
