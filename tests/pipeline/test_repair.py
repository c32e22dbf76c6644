"""Repair through the command line: plans that are damaged or gone, of a store that grew; model and data that were moved."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bert

PLANS = {1: "sherl/plan.json", 2: "sherl/plan-2.json", 3: "sherl/plan-3.json"}
ASKED: dict[int, tuple[object, ...]] = {
    1: ("--limit", 20, "--taps", "0,2"),
    2: ("--limit", 40, "--taps", "0,2"),
    3: ("--limit", 40, "--taps", "0,2,3"),
}
SMALL = ("--set", "extract.chunk_bytes=2KiB", "--unit-memory", "64KiB", "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repair")
    tiny_bert(root / "model")
    write_csv(root / "train.csv", 60)
    for asked in ASKED.values():
        call("extract", *base(root), *asked, "--store", root / "grown")
    return root


def base(place: Path) -> tuple[object, ...]:
    return ("--model", place / "model", "--data", place / "train.csv", "--encoding", "float32", *SMALL)


def content(root: Path) -> dict[str, bytes]:
    """Every file of a store but those that a repair moved aside."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".tmp")
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


DAMAGES: dict[str, Callable[[Path], Any]] = {"cut": cut, "gone": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("number", PLANS)
def test_a_plan_of_a_grown_store_is_made_again_from_what_its_extract_was_asked_for(
    place: Path, tmp_path: Path, number: int, damage: str
) -> None:
    store = Path(shutil.copytree(place / "grown", tmp_path / "store"))
    before = content(store)
    DAMAGES[damage](store / PLANS[number])
    damaged = content(store)

    told = call("repair", "--store", store, "--device", "cpu", code=5)
    assert f"{store / PLANS[number]}: " in told
    assert "give repair all options of that command" in told
    assert "Nothing of the store was changed" in told
    assert content(store) == damaged

    # what is not given is taken from the plan beside it
    result = call("repair", "--store", store, *ASKED[number], "--device", "cpu")
    assert (result["findings"], result["files"], result["units"], result["exit_code"]) == (1, [PLANS[number]], [], 0)
    assert result["same_digest"]
    assert content(store) == before
    assert call("verify", "--deep", "--store", store)["findings"] == []


def test_two_plans_are_repaired_one_after_the_other(place: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(place / "grown", tmp_path / "store"))
    before = content(store)
    for number in (2, 3):
        cut(store / PLANS[number])
    assert str(store / PLANS[3]) in call("repair", "--store", store, *ASKED[2], "--device", "cpu", code=5)
    assert call("repair", "--store", store, *ASKED[3], "--device", "cpu")["files"] == [PLANS[3]]
    assert content(store) == before


@pytest.mark.parametrize("encoding", ["float32", "int8", "float16+zstd"])
def test_the_only_plan_is_made_again_from_the_whole_command_alone(place: Path, tmp_path: Path, encoding: str) -> None:
    store = tmp_path / "store"
    words = (*base(place), "--limit", 30, "--encoding", encoding)
    call("extract", *words, "--store", store)
    before = content(store)
    cut(store / PLANS[1])
    shard = next(store.glob("train/encoder/h01/c/0/0"))
    shard.write_bytes(shard.read_bytes()[:-1])
    damaged = content(store)
    for given in ((), words[:2], words[:4]):
        told = call("repair", "--store", store, *given, "--device", "cpu", code=5)
        assert "give repair all options of that command" in told
        assert content(store) == damaged
    result = call("repair", *words, "--store", store)
    assert (result["exit_code"], result["files"][0], result["units"]) == (0, PLANS[1], ["train-00000"])
    assert content(store) == before


def test_model_and_data_that_were_moved_repair_with_the_settings_that_the_store_knows(
    place: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(place / "grown", tmp_path / "store"))
    before = content(store)
    shutil.copytree(place / "model", tmp_path / "model")
    shutil.copyfile(place / "train.csv", tmp_path / "train.csv")
    cut(store / "train/encoder/h03/c/0/0")
    moved = ("--model", tmp_path / "model", "--data", tmp_path / "train.csv")
    assert call("repair", "--store", store, *moved, "--device", "cpu")["same_digest"]
    assert content(store) == before


def test_gc_leaves_a_store_with_a_lost_plan_alone(place: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(place / "grown", tmp_path / "store"))
    (store / PLANS[3]).unlink()
    damaged = content(store)
    assert "repair the store first" in call("gc", "--yes", "--store", store, code=5)
    assert content(store) == damaged
