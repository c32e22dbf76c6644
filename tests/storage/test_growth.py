"""A store grows: what is added is there, what was there does not change, and readers keep their snapshot."""

import os
import shutil
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import growth_builders as cases
import numpy as np
import pytest
import zarr

from benchmarks.storage.killed import killed_after_each_call, processes
from sherl_cache.storage import Store, StoreWriter, Stream, pack_part, verify_store
from sherl_cache.storage.errors import InvalidInput, StoreCorrupt, StoreIncomplete, StoreMissing, StoreStale

GROWN = ["longer", "wider", "deeper", "everything"]
METADATA = "zarr.json"


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def epoch(store: Store, taps: dict[str, tuple[int, ...]] | None = None) -> list[np.ndarray]:
    reader = Stream(store, "train", taps or {"encoder": (0, 2)}, batch_examples=8, window=4, budget_bytes=1 << 24)
    return [
        np.concatenate([batch.examples, batch.streams["encoder"].taps.view(np.int32).ravel()])
        for batch in reader.epoch(0)
    ]


@pytest.mark.parametrize("step", GROWN)
def test_growing_adds_what_was_asked_for_and_changes_no_byte_of_the_rest(tmp_path: Path, step: str) -> None:
    case = cases.STEPS[step]
    cases.BEGUN.build(tmp_path)
    before = content(tmp_path)
    store = case.build(tmp_path)
    cases.check(store, case)
    assert store.verify(deep=True) == []
    after = content(tmp_path)
    changed = {path for path, data in before.items() if after.get(path) != data}
    assert all(path.endswith(METADATA) for path in changed), changed
    assert sum(len(data) for data in after.values()) == store.bytes


@pytest.mark.parametrize("step", GROWN)
def test_growing_again_changes_nothing(tmp_path: Path, step: str) -> None:
    cases.BEGUN.build(tmp_path)
    case = cases.STEPS[step]
    digest = case.build(tmp_path).digest
    before = content(tmp_path)
    assert case.create(tmp_path).missing() == []
    assert case.build(tmp_path).digest == digest
    assert content(tmp_path) == before


@pytest.mark.parametrize("step", ["wider", "deeper"])
def test_a_store_grown_by_a_split_or_taps_is_the_store_built_whole(tmp_path: Path, step: str) -> None:
    whole = cases.STEPS[step].build(tmp_path / "whole")
    cases.BEGUN.build(tmp_path / "grown")
    grown = cases.STEPS[step].build(tmp_path / "grown")
    assert grown.digest == whole.digest
    assert grown.fingerprint == whole.fingerprint
    for array in whole.plan.arrays():
        for unit in whole.plan.units():
            path = f"{array.path}/c/{unit.index}/0"
            if unit.split == array.split:
                assert (tmp_path / "grown" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()


def test_only_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    cases.BEGUN.build(tmp_path)
    begun = StoreWriter.open(tmp_path).units()
    longer = cases.LONGER.create(tmp_path)
    assert set(longer.missing()).isdisjoint(begun)
    assert sum(unit.examples for unit in longer.missing()) == 25
    cases.LONGER.build(tmp_path)
    deeper = replace(cases.LONGER, taps={"encoder": (0, 1, 2), "decoder": (1,)}).create(tmp_path)
    assert {unit.name: deeper.lacking(unit) for unit in deeper.missing()} == {
        unit.name: {"encoder": (1,)} for unit in deeper.units()
    }
    assert set(deeper.buffer(deeper.units()[0]).arrays) == {("encoder", 1)}
    with pytest.raises(InvalidInput, match="encoder/h00 is not"):
        deeper.buffer(deeper.units()[0]).put("encoder", 0, np.asarray([0]), np.zeros((1, 8), np.float32))


@pytest.mark.parametrize("step", ["longer", "deeper", "everything"])
def test_asking_for_less_taps_or_splits_is_not_stale(tmp_path: Path, step: str) -> None:
    cases.BEGUN.build(tmp_path)
    case = cases.STEPS[step]
    case.build(tmp_path)
    before = content(tmp_path)
    less = replace(case, taps={"encoder": (2,)}, parts={"train": case.parts["train"]})
    assert less.create(tmp_path).missing() == []
    assert content(tmp_path) == before


def test_a_split_that_comes_with_fewer_taps_gets_those_of_the_store(tmp_path: Path) -> None:
    cases.BEGUN.build(tmp_path)
    asked = replace(cases.WIDER, taps={"encoder": (2, 3), "decoder": (1,)})
    store = asked.build(tmp_path)
    whole = replace(cases.WIDER, taps={"encoder": (0, 2, 3), "decoder": (1,)})
    cases.check(store, whole)


def test_an_unfinished_store_grows_too(tmp_path: Path) -> None:
    writer = cases.BEGUN.create(tmp_path / "store")
    unit = writer.missing()[0]
    writer.write(unit, cases.BEGUN.buffer(writer, unit))
    store = cases.EVERYTHING.build(tmp_path / "store")
    cases.check(store, cases.EVERYTHING)
    cases.BEGUN.build(tmp_path / "other")
    assert cases.EVERYTHING.build(tmp_path / "other").digest == store.digest
    assert store.verify(deep=True) == []


def test_a_store_grown_step_by_step_holds_everything(tmp_path: Path) -> None:
    deeper = replace(cases.LONGER, taps=cases.DEEPER.taps)
    final = replace(deeper, parts={"train": (40, 25, 30), "validation": (5,)})
    for case in (cases.BEGUN, cases.LONGER, deeper):
        case.build(tmp_path)
    store = final.build(tmp_path)
    cases.check(store, final)
    assert [f"plan-{number}.json" for number in (2, 3, 4)] == sorted(
        path.name for path in (tmp_path / "sherl").glob("plan-*.json")
    )
    assert store.verify(deep=True) == []


@pytest.mark.parametrize("step", GROWN)
def test_a_reader_keeps_its_snapshot_while_the_store_grows(tmp_path: Path, step: str) -> None:
    opened = cases.BEGUN.build(tmp_path)
    expected = epoch(opened)
    late = Stream(opened, "train", {"encoder": (0, 2)}, batch_examples=8, window=4, budget_bytes=1 << 24).epoch(0)
    next(late)
    case = cases.STEPS[step]
    writer = case.create(tmp_path)
    for unit in writer.missing():
        writer.write(unit, case.buffer(writer, unit))
        now = Store.open(tmp_path)
        assert now.growing
        assert (now.digest, now.plan) == (opened.digest, opened.plan)
        assert all(map(np.array_equal, epoch(now), expected))
        assert "missing" in {finding.kind for finding in verify_store(tmp_path, deep=True)}
    writer.finalize()
    assert not Store.open(tmp_path).growing
    assert len(list(late)) == len(expected) - 1
    assert all(map(np.array_equal, epoch(opened), expected))
    again = Store.open(tmp_path, snapshot=1)
    assert again.digest == opened.digest
    assert all(map(np.array_equal, epoch(again), expected))
    with pytest.raises(StoreMissing, match="no snapshot 7"):
        Store.open(tmp_path, snapshot=7)


@pytest.mark.parametrize("step", GROWN)
def test_zarr_alone_reads_the_grown_store(tmp_path: Path, step: str) -> None:
    cases.BEGUN.build(tmp_path)
    store = cases.STEPS[step].build(tmp_path)
    group = zarr.open_group(tmp_path, mode="r")
    for array in store.plan.arrays():
        whole = group[array.path][:]
        assert whole.shape == (array.rows, array.stream_plan.width)
        for number in range(array.split_plan.groups):
            rows = whole[number * array.stream_plan.chunk_rows : (number + 1) * array.stream_plan.chunk_rows]
            if number in store.groups(array.split):
                assert np.array_equal(rows, store.chunk(array.split, array.stream, array.tap, number), equal_nan=True)
            else:
                assert np.isnan(rows).all()


def test_gaps_between_parts_are_never_served(tmp_path: Path) -> None:
    cases.BEGUN.build(tmp_path)
    store = cases.LONGER.build(tmp_path)
    split = store.split("train")
    gaps = [group for group, count in enumerate(split.group_examples) if not count]
    assert gaps, "the case must have a gap"
    assert not set(gaps) & set(store.groups("train").tolist())
    with pytest.raises(StoreCorrupt, match="not in the shard"):
        store.chunk("train", "encoder", 0, gaps[0])
    served = np.concatenate([batch[:8] for batch in epoch(store)])
    assert len(epoch(store)) == -(-65 // 8)
    assert set(served.tolist()) >= set(range(64))


REFUSED = {
    "train.*examples": replace(cases.BEGUN, parts={"train": (41,)}),
    "unit": replace(cases.BEGUN, unit_memory=1),
    "encoding": replace(cases.DEEPER, encoding="float16"),
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_does_not_extend_the_store_is_refused(tmp_path: Path, told: str) -> None:
    cases.BEGUN.build(tmp_path)
    before = content(tmp_path)
    with pytest.raises(StoreStale, match=told):
        REFUSED[told].create(tmp_path)
    assert content(tmp_path) == before


def test_a_part_cut_off_again_is_refused(tmp_path: Path) -> None:
    cases.BEGUN.build(tmp_path)
    cases.LONGER.build(tmp_path)
    with pytest.raises(StoreStale, match="examples: 65 in the store, 40 asked for"):
        cases.BEGUN.create(tmp_path)


def test_two_that_let_a_store_grow_at_once_end_with_both(tmp_path: Path) -> None:
    cases.BEGUN.build(tmp_path)
    both = [processes().Process(target=case.build, args=(tmp_path,)) for case in (cases.WIDER, cases.DEEPER)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    case = replace(cases.WIDER, taps=cases.DEEPER.taps)
    store = case.build(tmp_path)
    cases.check(store, case)
    assert store.verify(deep=True) == []


def test_a_copy_there_and_back_verifies(tmp_path: Path) -> None:
    cases.BEGUN.build(tmp_path / "store")
    digest = cases.EVERYTHING.build(tmp_path / "store").digest
    subprocess.run(["cp", "-r", tmp_path / "store", tmp_path / "there"], check=True)
    shutil.rmtree(tmp_path / "store")
    subprocess.run(["cp", "-r", tmp_path / "there", tmp_path / "store"], check=True)
    assert verify_store(tmp_path / "store", deep=True) == []
    assert Store.open(tmp_path / "store").digest == digest


@pytest.mark.parametrize("change", ["extends", "shrunk", "missing first", "swapped"])
def test_a_chain_of_plans_that_does_not_hold_is_refused(tmp_path: Path, change: str) -> None:
    cases.BEGUN.build(tmp_path)
    cases.DEEPER.build(tmp_path)
    first, second = tmp_path / "sherl/plan.json", tmp_path / "sherl/plan-2.json"
    if change == "extends":
        second.write_bytes(second.read_bytes().replace(b'"extends":"', b'"extends":"0')[:-1])
    elif change == "shrunk":
        second.write_bytes(second.read_bytes().replace(b'"examples":40', b'"examples":39'))
    elif change == "missing first":
        first.unlink()
    else:
        data = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
    with pytest.raises(StoreMissing if change == "missing first" else StoreCorrupt):
        Store.open(tmp_path)
    if change != "missing first":
        assert verify_store(tmp_path)


def test_any_flipped_bit_of_a_grown_store_is_found(tmp_path: Path) -> None:
    cases.BEGUN.build(tmp_path)
    cases.EVERYTHING.build(tmp_path)
    rng = np.random.default_rng(0)
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        data = bytearray(path.read_bytes())
        place, bit = int(rng.integers(len(data))), 1 << int(rng.integers(8))
        data[place] ^= bit
        path.write_bytes(data)
        assert verify_store(tmp_path, deep=True), f"{path}: byte {place}, bit {bit}"
        data[place] ^= bit
        path.write_bytes(data)
    assert verify_store(tmp_path, deep=True) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("step", ["longer", "wider", "deeper"])
def test_dead_after_each_single_call_of_growing_the_same_growth_ends_as_unbroken(tmp_path: Path, step: str) -> None:
    begun = cases.BEGUN.build(tmp_path / "begun")
    shutil.copytree(tmp_path / "begun", tmp_path / "whole")
    case = cases.STEPS[step]
    expected = case.build(tmp_path / "whole").digest
    died = 0
    for root in killed_after_each_call(case.build, tmp_path / "killed", begin=partial(shutil.copytree, begun.root)):
        died += 1
        found = Store.open(root)
        assert found.digest in (begun.digest, expected)
        cases.check(found, cases.BEGUN if found.digest == begun.digest else case)
        assert zarr.open_group(root, mode="r")["train/encoder/h00"][:1].shape == (1, 8)
        assert {finding.kind for finding in verify_store(root, deep=True)} <= {"missing"}
        store = case.build(root)
        assert store.digest == expected
        assert store.verify(deep=True) == []
        assert not [path for path in root.rglob("*") if path.name.endswith(".tmp")]
    assert died > 30
    print(f"{step}: killed after each of {died} calls")


def test_a_longer_example_than_a_chunk_is_refused(tmp_path: Path) -> None:
    store = cases.BEGUN.build(tmp_path)
    long = cases.BEGUN.lengths("train", 40, 42)
    long["encoder"].values[0] = 10_000
    with pytest.raises(StoreStale, match="10000 rows of encoder, a chunk of the store holds"):
        pack_part(store.split("train"), long, split="train", first_source=40)


def test_a_partial_store_that_also_grows_serves_whole_units_only(tmp_path: Path) -> None:
    cases.BEGUN.create(tmp_path)
    writer = cases.DEEPER.create(tmp_path)
    unit = writer.missing()[0]
    writer.write(unit, cases.DEEPER.buffer(writer, unit))
    with pytest.raises(StoreIncomplete):
        Store.open(tmp_path)
    store = Store.open(tmp_path, allow_partial=True)
    assert store.groups("train").tolist() == list(range(unit.groups))
    assert sorted(os.listdir(tmp_path / "sherl/receipts")) == [f"{unit.name}.2.json", f"{unit.name}.json"]
